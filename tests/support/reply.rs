//! A response as it came, byte for byte.

use std::{io, time::Instant};

pub(super) fn find(bytes: &[u8], marker: &[u8]) -> Option<usize> {
    bytes.windows(marker.len()).position(|window| window == marker)
}

/// A response as it came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub error: Option<io::Error>,
    pub at: Instant,
}

impl Reply {
    pub(super) fn parse(mut bytes: Vec<u8>, error: Option<io::Error>) -> Self {
        let end = find(&bytes, b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
        let body = bytes.split_off(end);
        let head = String::from_utf8_lossy(&bytes).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head, body, error, at: Instant::now() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body without its chunks' framing; `None` if it is not framed in chunks that came to their end.
    pub fn dechunked(&self) -> Option<Vec<u8>> {
        let (mut rest, mut body) = (&self.body[..], Vec::new());
        loop {
            let line = find(rest, b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
            rest = &rest[line + 2..];
            let end = size.checked_add(2).filter(|end| *end <= rest.len())?;
            if &rest[size..end] != b"\r\n" {
                return None;
            }
            body.extend_from_slice(&rest[..size]);
            rest = &rest[end..];
            if size == 0 {
                return rest.is_empty().then_some(body);
            }
        }
    }

    /// The head's lines without the date, the headers sorted.
    pub fn sorted_head(&self) -> Vec<&str> {
        let is_date = |line: &&str| line.to_ascii_lowercase().starts_with("date:");
        let mut lines: Vec<_> = self.head.trim_end().split("\r\n").filter(|line| !is_date(line)).collect();
        lines[1..].sort_unstable();
        lines
    }
}

pub(super) fn whole_response(bytes: &[u8], bodiless: bool) -> Option<Reply> {
    find(bytes, b"\r\n\r\n")?;
    let mut reply = Reply::parse(bytes.to_vec(), None);
    if bodiless || matches!(reply.status, 204 | 304) {
        return Some(reply);
    }
    if reply.header("transfer-encoding").is_some() {
        reply.body = reply.dechunked()?;
        return Some(reply);
    }
    let length: usize = reply.header("content-length")?.parse().unwrap();
    (reply.body.len() >= length).then_some(reply)
}
