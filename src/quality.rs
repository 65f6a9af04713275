//! The weights of content negotiation (RFC 9110, section 12.4.2).

/// `0`, `1`, and up to three decimals, in thousandths.
pub(crate) fn thousandths(weight: &str) -> Option<u16> {
    let (whole, decimals) = weight.split_once('.').unwrap_or((weight, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let decimals = format!("{decimals:0<3}").parse::<u16>().ok()?;
    match whole {
        "0" => Some(decimals),
        "1" if decimals == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_decimals_at_most_and_one_at_most() {
        for (weight, thousandth) in [("0", 0), ("1", 1000), ("1.000", 1000), ("0.5", 500), ("0.05", 50), ("0.", 0)] {
            assert_eq!(thousandths(weight), Some(thousandth), "{weight}");
        }
        for weight in ["", "2", "1.001", "0.1234", "a", "0.+1", "-0", ".5"] {
            assert_eq!(thousandths(weight), None, "{weight}");
        }
    }
}
