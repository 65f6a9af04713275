//! As much of HTTP/1.1's client side as the benchmark needs.

/// Where the first response in `bytes` ends; `None` as long as that is not known.
///
/// Every server here declares the length of what it answers.
pub fn response_end(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).expect("a head is text");
    assert!(text.starts_with("HTTP/1.1 200"), "not the answer that was expected: {text}");
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().expect("a length"))
    });
    Some(head + length.expect("a declared length"))
}

/// A GET that keeps the connection, or closes it.
pub fn get(path: &str, close: bool) -> Vec<u8> {
    let close = if close { "connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{close}\r\n").into_bytes()
}
