//! Which encoding a client accepts (RFC 9110, section 12.5.3).

use http::{HeaderMap, HeaderValue, header};

use crate::quality::thousandths;

/// The encodings that can be flushed, the preferred one last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Encoding {
    Gzip,
    Brotli,
    Zstd,
}

impl Encoding {
    const ALL: [Self; 3] = [Self::Gzip, Self::Brotli, Self::Zstd];

    pub(super) const fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        })
    }

    fn is_named(self, coding: &str) -> bool {
        match self {
            // RFC 9110, section 8.4.1.3: the old name is the same coding.
            Self::Gzip => coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip"),
            Self::Brotli => coding.eq_ignore_ascii_case("br"),
            Self::Zstd => coding.eq_ignore_ascii_case("zstd"),
        }
    }
}

/// Which encodings are offered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) gzip: bool,
    pub(super) brotli: bool,
    pub(super) zstd: bool,
}

impl Offer {
    const fn has(self, encoding: Encoding) -> bool {
        match encoding {
            Encoding::Gzip => self.gzip,
            Encoding::Brotli => self.brotli,
            Encoding::Zstd => self.zstd,
        }
    }

    /// The one that the client weighs most, if it weighs it no less than the plain body. `None` if that is to be sent,
    /// as it is to a client that names no encoding.
    pub(super) fn choose(self, request: &HeaderMap) -> Option<Encoding> {
        let accepted = Accepted::parse(request);
        let best = Encoding::ALL
            .into_iter()
            .filter(|encoding| self.has(*encoding))
            .map(|encoding| (accepted.weight(|coding| encoding.is_named(coding)).unwrap_or(0), encoding))
            .filter(|(weight, _)| *weight > 0)
            .max()?;
        // Not named, it is acceptable, but nothing that is named is meant to stand behind it.
        let plain = accepted.named(|coding| coding.eq_ignore_ascii_case("identity")).unwrap_or(0);
        (best.0 >= plain).then_some(best.1)
    }
}

/// The codings of a request with their weights, in thousandths.
struct Accepted<'a>(Vec<(&'a str, u16)>);

impl<'a> Accepted<'a> {
    fn parse(request: &'a HeaderMap) -> Self {
        let values = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        Self(values.flat_map(|value| value.split(',')).filter_map(coding).collect())
    }

    fn named(&self, is_named: impl Fn(&str) -> bool) -> Option<u16> {
        self.0.iter().find(|(coding, _)| is_named(coding)).map(|(_, weight)| *weight)
    }

    fn weight(&self, is_named: impl Fn(&str) -> bool) -> Option<u16> {
        self.named(is_named).or_else(|| self.named(|coding| coding == "*"))
    }
}

/// One element of the list; what cannot be read counts as not there.
fn coding(element: &str) -> Option<(&str, u16)> {
    let mut parts = element.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?;
    let mut weight = 1000;
    for parameter in parts {
        let (key, value) = parameter.split_once('=')?;
        if key.trim().eq_ignore_ascii_case("q") {
            weight = thousandths(value.trim())?;
        }
    }
    Some((name, weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offer = Offer { gzip: true, brotli: true, zstd: true };

    fn choose(offer: Offer, values: &[&'static str]) -> Option<Encoding> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        }
        offer.choose(&headers)
    }

    #[test]
    fn the_heaviest_encoding_is_chosen_and_the_better_one_of_equals() {
        for (values, chosen) in [
            (&["gzip"][..], Some(Encoding::Gzip)),
            (&["x-gzip"], Some(Encoding::Gzip)),
            (&["gzip, deflate, br, zstd"], Some(Encoding::Zstd)),
            (&["gzip", "BR"], Some(Encoding::Brotli)),
            (&["br;q=0.5, gzip;q=0.8"], Some(Encoding::Gzip)),
            (&["br ; Q=0.999 , gzip"], Some(Encoding::Gzip)),
            (&["*"], Some(Encoding::Zstd)),
            (&["zstd;q=0, *"], Some(Encoding::Brotli)),
            (&["identity;q=0.5, gzip;q=0.1"], None),
            (&["identity, gzip"], Some(Encoding::Gzip)),
            (&["*;q=0"], None),
            (&["gzip;q=0"], None),
            (&["deflate"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(choose(ALL, values), chosen, "{values:?}");
        }
        let gzip = Offer { brotli: false, zstd: false, ..ALL };
        assert_eq!(choose(gzip, &["gzip, br, zstd"]), Some(Encoding::Gzip));
        assert_eq!(choose(gzip, &["br, zstd"]), None);
    }

    #[test]
    fn a_weight_that_cannot_be_read_takes_its_coding_along() {
        for weight in ["gzip;q=", "gzip;q=2", "gzip;q=1.001", "gzip;q=0.1234", "gzip;q=a", "gzip;q=0.+1", "gzip;q"] {
            assert_eq!(choose(ALL, &[weight]), None, "{weight}");
        }
    }
}
