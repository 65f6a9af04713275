//! What the layers do not change: heads and bodies beside those of the same app without them.

use axum::{
    Router,
    body::Body,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use http::{HeaderMap, StatusCode, header};
use tower::{Layer, ServiceBuilder};
use tower_epilogue::{Continuation, Epilogue, IgnoreAbortLayer, TimeLimitLayer};
use tower_http::{compression::CompressionLayer, limit::RequestBodyLimitLayer, services::ServeDir, trace::TraceLayer};

use crate::support::{Client, h2client::Http2, soon};

fn plain() -> Router {
    let declared =
        async || ([(header::CONTENT_LENGTH, "5")], Body::from_stream(stream::iter([Ok::<_, std::io::Error>("hello")])));
    Router::new()
        .route("/text", get(async || "hello"))
        .route("/json", get(async || axum::Json(vec!["hello"; 100])))
        .route("/declared", get(declared))
        .route("/streamed", get(async || Body::from_stream(stream::iter([Ok::<_, std::io::Error>("hel"), Ok("lo")]))))
        .route("/empty", get(async || StatusCode::NO_CONTENT))
        .route("/reset", get(async || (StatusCode::RESET_CONTENT, "")))
        .route("/unchanged", get(async || (StatusCode::NOT_MODIFIED, [(header::CONTENT_LENGTH, "5")])))
        .route(
            "/proxied",
            get(async || -> Response {
                let mut response = Body::from_stream(stream::iter([Ok::<_, std::io::Error>("hello")])).into_response();
                response.headers_mut().insert(header::TRANSFER_ENCODING, "chunked".parse().unwrap());
                response.headers_mut().insert(header::CONNECTION, "keep-alive".parse().unwrap());
                response
            }),
        )
        .fallback_service(ServeDir::new("tests").append_index_html_on_directories(false))
}

/// Method, path, and more of the head.
type Ask = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const ASKED: [Ask; 23] = [
    ("GET", "/text", &[]),
    ("HEAD", "/text", &[]),
    ("GET", "/json", &[]),
    ("HEAD", "/json", &[]),
    ("GET", "/apps.rs", &[]),
    ("HEAD", "/apps.rs", &[]),
    ("GET", "/apps.rs", &[("range", "bytes=3-9")]),
    ("HEAD", "/apps.rs", &[("range", "bytes=3-9")]),
    ("GET", "/apps.rs", &[("range", "bytes=999999-")]),
    ("GET", "/apps.rs", &[("if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT")]),
    ("GET", "/apps.rs", &[("if-unmodified-since", "Fri, 01 Jan 1999 00:00:00 GMT")]),
    ("POST", "/apps.rs", &[]),
    ("GET", "/none", &[]),
    ("HEAD", "/none", &[]),
    ("GET", "/apps", &[]),
    ("GET", "/declared", &[]),
    ("HEAD", "/declared", &[]),
    ("GET", "/streamed", &[]),
    ("HEAD", "/streamed", &[]),
    ("GET", "/empty", &[]),
    ("GET", "/reset", &[]),
    ("GET", "/unchanged", &[]),
    ("GET", "/proxied", &[]),
];

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

async fn serve(app: Router, ours: bool) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    if ours {
        tokio::spawn(Epilogue::new().serve(listener, app).into_future());
    } else {
        tokio::spawn(axum::serve(listener, app).into_future());
    }
    address
}

fn sorted(headers: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut headers: Vec<_> = headers.filter(|(name, _)| name != "date").collect();
    headers.sort();
    headers
}

async fn http1(address: std::net::SocketAddr, version: &str, asked: Ask) -> Seen {
    let (method, path, more) = asked;
    let mut client = Client::connect(address).await;
    let more: String = more.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(&format!("{method} {path} HTTP/{version}\r\nhost: test\r\nconnection: close\r\n{more}\r\n")).await;
    let reply = client.reply().await;
    assert!(reply.error.is_none(), "{asked:?}");
    let lines = reply.head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let headers = sorted(lines.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())));
    Seen { status: reply.status, headers, body: reply.body }
}

async fn http2(address: std::net::SocketAddr, asked: Ask) -> Seen {
    let (method, path, more) = asked;
    let mut client = Http2::connect(address).await;
    let mut request = http::Request::builder().method(method).uri(format!("http://test{path}"));
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    let response = client.send.send_request(request.body(()).unwrap(), true).unwrap().0;
    let whole =
        soon("a response", async { crate::support::h2client::read(response.await.unwrap()).await.unwrap() }).await;
    let pairs = |headers: &HeaderMap| {
        let pairs = headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        sorted(pairs)
    };
    Seen { status: whole.status, headers: pairs(&whole.headers), body: whole.body }
}

/// `layered` beside `plain`, under axum's server and under ours.
async fn check(how: &str, plain: Router, layered: Router) {
    let beside = serve(plain, false).await;
    for ours in [false, true] {
        let address = serve(layered.clone(), ours).await;
        for (asked, version) in ASKED.iter().flat_map(|asked| ["1.0", "1.1", "2"].map(|version| (*asked, version))) {
            let (mut expected, mut seen) = match version {
                "2" => (http2(beside, asked).await, http2(address, asked).await),
                _ => (http1(beside, version, asked).await, http1(address, version, asked).await),
            };
            if seen.status == 204 {
                // hyper sends one over HTTP/2 (RFC 9110, section 8.6).
                for seen in [&mut expected, &mut seen] {
                    seen.headers.retain(|(name, _)| name != "content-length");
                }
            }
            assert_eq!(seen, expected, "{how}, ours: {ours}: {asked:?} {version}");
        }
    }
}

const OURS: (TimeLimitLayer, IgnoreAbortLayer) = (TimeLimitLayer::off(), IgnoreAbortLayer::new());

/// What stands in one stack has bodies of its own kinds.
macro_rules! theirs {
    ($ours:expr) => {
        ServiceBuilder::new()
            .layer($ours)
            .layer(TraceLayer::new_for_http())
            .layer($ours)
            .layer(RequestBodyLimitLayer::new(1000))
            .layer($ours)
            .layer(CompressionLayer::new())
            .layer($ours)
    };
}

#[tokio::test]
async fn a_response_is_what_it_is_without_them() {
    let work = || map_response(async |response: Response| (Continuation::new(async {}), response));
    let none = tower::layer::util::Identity::new();
    check("nothing", plain(), plain()).await;
    check("a continuation", plain(), plain().layer(work())).await;
    check("two", plain(), plain().layer(work()).layer(OURS)).await;
    check("between", plain().layer(theirs!(none.clone())), plain().layer(work()).layer(theirs!(OURS))).await;
}

#[tokio::test]
async fn so_it_is_around_a_service_and_with_others_around_the_whole_app() {
    let files = || ServeDir::new("tests");
    let plain = Router::new().fallback_service(files());
    let layered = Router::new().fallback_service(ServiceBuilder::new().layer(OURS).service(files()));
    check("around a service", plain.clone(), layered).await;
    let traced = TraceLayer::new_for_http().layer(plain.clone());
    let beside = serve(plain, false).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Epilogue::new().serve(listener, traced).into_future());
    for asked in ASKED {
        assert_eq!(http1(address, "1.1", asked).await.headers, http1(beside, "1.1", asked).await.headers, "{asked:?}");
    }
}
