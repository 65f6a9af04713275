//! Requests as bytes.

use http::{
    Method, Request,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};

/// A request as the bytes of HTTP/1.1, with a `Host`, and a `Content-Length` for its body, if it has none: for
/// [`TestClient::send`], and for [`Interrupted::send`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use axum::{Json, Router, http::Request, routing::post};
/// use tower_epilogue::test_util::{TestServer, request_bytes};
///
/// let server = TestServer::in_memory(Router::new().route("/order", post(async |Json(number): Json<u32>| Json(number))));
/// let order = Request::post("/order")
///     .header("content-type", "application/json")
///     .header("idempotency-key", "\"click-1\"")
///     .body("17")
///     .unwrap();
/// let mut client = server.connect().await;
/// client.send(request_bytes(order)).await;
/// assert_eq!(client.response().await.text(), "17");
/// # }
/// ```
///
/// [`TestClient::send`]: super::TestClient::send
/// [`Interrupted::send`]: super::Interrupted::send
#[must_use]
pub fn request_bytes(request: Request<impl AsRef<[u8]>>) -> Vec<u8> {
    let (parts, body) = request.into_parts();
    let body = body.as_ref();
    let connects = parts.method == Method::CONNECT;
    let target = match parts.uri.authority() {
        // RFC 9112, section 3.2.3.
        Some(authority) if connects => authority.as_str(),
        _ => parts.uri.path_and_query().map_or("/", |target| target.as_str()),
    };
    let mut bytes = format!("{} {target} HTTP/1.1\r\n", parts.method).into_bytes();
    if !parts.headers.contains_key(HOST) {
        let host = parts.uri.authority().map_or("test", |authority| authority.as_str());
        bytes.extend_from_slice(format!("host: {host}\r\n").as_bytes());
    }
    let is_framed = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| parts.headers.contains_key(name));
    let has_none = body.is_empty() && (parts.method.is_safe() || connects);
    if !is_framed && !has_none {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    for (name, value) in &parts.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(request: Request<&str>) -> String {
        String::from_utf8(request_bytes(request)).unwrap()
    }

    #[test]
    fn what_is_missing_is_added_and_nothing_else() {
        let get = Request::get("/a?b").body("").unwrap();
        assert_eq!(text(get), "GET /a?b HTTP/1.1\r\nhost: test\r\n\r\n");
        let post = Request::post("http://shop/a").header("x-a", "1").header("x-a", "2").body("body").unwrap();
        assert_eq!(text(post), "POST /a HTTP/1.1\r\nhost: shop\r\ncontent-length: 4\r\nx-a: 1\r\nx-a: 2\r\n\r\nbody");
    }

    #[test]
    fn a_connect_names_the_other_end_and_has_no_body() {
        let connect = Request::connect("shop:443").body("").unwrap();
        assert_eq!(text(connect), "CONNECT shop:443 HTTP/1.1\r\nhost: shop:443\r\n\r\n");
    }

    #[test]
    fn what_is_said_stays() {
        // A client that stops half-way.
        let half = Request::put("/").header("host", "mine").header("content-length", "100").body("half").unwrap();
        assert_eq!(text(half), "PUT / HTTP/1.1\r\nhost: mine\r\ncontent-length: 100\r\n\r\nhalf");
        let chunks = Request::post("/").header("transfer-encoding", "chunked").body("0\r\n\r\n").unwrap();
        assert_eq!(text(chunks), "POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    }
}
