//! The layers alone, without a tracked connection.

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener, net::TcpStream};
use tower::ServiceExt;
use tower_epilogue::{EarlyCloseLayer, IgnoreAbortLayer, Sent, ShutdownHookLayer};

use crate::support::{ends, h2client::Http2, soon};

fn streamed() -> Body {
    Body::from_stream(stream::iter(["hel", "lo"].map(Ok::<_, std::io::Error>)))
}

async fn serve(app: Router) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    address
}

/// An HTTP/1 server that has so many bytes lets go of the body without asking for its end.
#[tokio::test]
async fn a_body_whose_declared_length_was_sent_is_no_abort() {
    for version in ["1.0", "1.1"] {
        let (hook, mut ends) = ends();
        let declared = async || ([(header::CONTENT_LENGTH, "5")], streamed()).into_response();
        let address = serve(Router::new().route("/", get(declared)).layer(hook)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET / HTTP/{version}\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut reply = String::new();
        soon("a response", stream.read_to_string(&mut reply)).await.unwrap();
        assert!(reply.ends_with("\r\n\r\nhello"), "{reply}");
        let (status, sent) = soon("a hook", ends.recv()).await.unwrap();
        assert_eq!((status.bits(), sent), (0, Sent::Flushed), "{version}");
    }
}

/// As it is with a body that knows its length, and tells only when it is asked once more that this was all.
#[tokio::test]
async fn a_body_whose_known_length_was_sent_is_no_abort() {
    for (version, closes) in [("1.0", "close"), ("1.1", "close"), ("1.1", "keep-alive")] {
        for layer in [None, Some(EarlyCloseLayer::new())] {
            let (hook, mut ends) = ends();
            let whole: Full<bytes::Bytes> = Full::from("hello");
            let known = async move || Body::new(whole.clone().with_trailers(std::future::ready(None)));
            let app = Router::new().route("/", get(known));
            let app = if let Some(layer) = layer { app.layer(layer) } else { app };
            let mut stream = TcpStream::connect(serve(app.layer(hook)).await).await.unwrap();
            let request = format!("GET / HTTP/{version}\r\nhost: test\r\nconnection: {closes}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let (status, sent) = soon("a hook", ends.recv()).await.unwrap();
            assert_eq!((status.bits(), sent), (0, Sent::Flushed), "{version}, {closes}");
        }
    }
}

/// axum declares the length of what is left of a body: nothing may be left that has one.
#[tokio::test]
async fn the_head_of_a_stream_on_http_2_declares_no_length() {
    let layers = [EarlyCloseLayer::new().buffer_limit(0), EarlyCloseLayer::new()];
    for (layer, length) in layers.into_iter().zip([None, Some("5")]) {
        let app = Router::new().route("/", get(async || streamed())).layer((layer, IgnoreAbortLayer::off()));
        let mut client = Http2::connect(serve(app).await).await;
        let head = soon("a head", client.start("HEAD", "/").await).await.unwrap();
        let get = client.get("/").await.unwrap();
        for headers in [head.headers(), &get.headers] {
            assert_eq!(headers.get(header::CONTENT_LENGTH).map(|length| length.to_str().unwrap()), length);
        }
    }
}

/// It is measured for a HEAD as for a GET, and fails alike.
#[tokio::test]
async fn a_body_that_panics_while_it_is_measured_is_a_500_for_a_head_as_for_its_get() {
    for method in [Method::GET, Method::HEAD] {
        let (sender, mut panics) = tokio::sync::mpsc::unbounded_channel();
        let body = async || -> Body {
            Body::from_stream(stream::once(async { panic!("as this test wants it") }).map(Ok::<&str, std::io::Error>))
        };
        let hook = ShutdownHookLayer::new(async move |end| sender.send(end.panic()).unwrap());
        let app = Router::new().route("/", get(body)).layer((EarlyCloseLayer::new(), hook));
        let request = Request::builder().method(method.clone()).uri("/").body(Body::empty()).unwrap();
        let response = tokio::spawn(app.oneshot(request)).await.expect("the panic stays with its body").unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()["connection"], "close");
        drop(response);
        assert_eq!(soon("a hook", panics.recv()).await.unwrap().as_deref(), Some("as this test wants it"), "{method}");
    }
}
