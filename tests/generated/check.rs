//! What must be true of what a client got.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::Request,
    response::Response,
    serve::{Listener, ListenerExt},
};
use http::{HeaderMap, Method, header};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tower::{Service, ServiceExt, make::Shared, service_fn};
use tower_epilogue::{Epilogue, Sent};

use crate::{
    answer::trailers,
    case::{Case, Kind},
    fetch::{Framing, Got, Version, fetch, request},
    stack::{Ended, layered, plain},
    support::soon,
};

/// Plain axum, a server of this crate, and `axum::serve` for the layers alone. Each serves the app of the moment.
pub struct Servers {
    plain: Place,
    tracked: Place,
    alone: Place,
    ended: UnboundedSender<Ended>,
    ends: tokio::sync::Mutex<UnboundedReceiver<Ended>>,
}

struct Place {
    address: SocketAddr,
    app: Arc<Mutex<Router>>,
}

/// Any app.
trait Serves:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Serves for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl Place {
    async fn listen() -> (Self, TcpListener, impl Serves) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = Arc::new(Mutex::new(Router::new()));
        let current = app.clone();
        // No router, which would do to a HEAD response once more what the case's does.
        let serve = service_fn(move |request: Request| {
            let app = current.lock().unwrap().clone();
            app.oneshot(request)
        });
        (Self { address: listener.local_addr().unwrap(), app }, listener, serve)
    }

    fn serve(&self, app: Router) {
        *self.app.lock().unwrap() = app;
    }
}

/// A last frame that is a small write of its own does not wait for the client's delayed acknowledgement.
fn at_once(listener: TcpListener) -> impl Listener<Io = TcpStream, Addr = SocketAddr> {
    listener.tap_io(|stream| stream.set_nodelay(true).unwrap())
}

impl Servers {
    pub async fn start() -> Self {
        let (plain, listener, app) = Place::listen().await;
        tokio::spawn(axum::serve(at_once(listener), Shared::new(app)).into_future());
        let (alone, listener, app) = Place::listen().await;
        tokio::spawn(axum::serve(at_once(listener), Shared::new(app)).into_future());
        let (tracked, listener, app) = Place::listen().await;
        tokio::spawn(Epilogue::new().serve(listener, app).into_future());
        let (ended, ends) = unbounded_channel();
        Self { plain, tracked, alone, ended, ends: tokio::sync::Mutex::new(ends) }
    }
}

pub async fn check(servers: &Servers, case: &Case) {
    servers.plain.serve(plain(case));
    let place = if case.tracked { &servers.tracked } else { &servers.alone };
    place.serve(layered(case, &servers.ended));
    let mut ends = servers.ends.lock().await;

    let mut headers = Vec::new();
    if case.asks.takes_trailers {
        headers.push((header::TE, "trailers"));
    }
    let theirs = fetch(servers.plain.address, case.version, request(Method::GET, "/", &headers)).await;
    headers.extend(case.asks.accepts.map(|accepts| (header::ACCEPT_ENCODING, accepts)));

    let ours = fetch(place.address, case.version, request(Method::GET, "/", &headers)).await;
    let checked = Checked { case, theirs: &theirs, ours: &ours };
    checked.ended(&soon("the hook of a GET", ends.recv()).await.unwrap());
    checked.connection();
    checked.framing();
    checked.body().await;
    checked.headers();
    checked.trailers();

    if case.asks.head {
        let head = fetch(place.address, case.version, request(Method::HEAD, "/", &headers)).await;
        let ended = soon("the hook of a HEAD", ends.recv()).await.unwrap();
        assert_eq!((ended.status, ended.continued), (0, 1), "{ended:?}");
        if checked.passes_through() {
            let theirs = fetch(servers.plain.address, case.version, request(Method::HEAD, "/", &headers)).await;
            // Of a response that never has a body axum says that its length is 0.
            let has_body = ![204, 304].contains(&case.answer.status.as_u16());
            let length = |got: &Got| got.length().filter(|_| !checked.is_encoded() && has_body);
            assert_eq!((head.status, length(&head)), (theirs.status, length(&theirs)), "HEAD of a stream");
        } else if ours.status != 0 {
            assert_eq!(head.status, ours.status);
            // An empty body may be one that was taken off: the function is not called for it, and its length not known.
            if case.early_close.maps && case.answer.known && case.length() == 0 {
                return assert_eq!(head.length(), None);
            }
            assert_eq!(comparable(&head.headers), comparable(&ours.headers), "HEAD and GET");
            if ours.whole {
                assert_eq!(head.closed, ours.closed, "HEAD and GET");
            }
        }
    }
}

struct Checked<'a> {
    case: &'a Case,
    theirs: &'a Got,
    ours: &'a Got,
}

impl Checked<'_> {
    /// The body failed while nothing had left.
    fn is_our_500(&self) -> bool {
        self.case.answer.fails_after.is_some() && self.ours.body == b"Internal Server Error\n"
    }

    /// Whether the early close let the response pass without a touch.
    fn passes_through(&self) -> bool {
        let answer = &self.case.answer;
        [204, 304].contains(&answer.status.as_u16())
            || answer.content_type == Some("text/event-stream")
            || answer.extra.contains(&("x-accel-buffering", "no"))
    }

    /// Whether somebody has encoded the body.
    fn is_encoded(&self) -> bool {
        self.ours.text(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity")
    }

    /// Whether tower-http's layer stands outside of the early close.
    fn theirs_is_outside(&self) -> bool {
        self.case.place(Kind::Compression) < self.case.place(Kind::EarlyClose)
            && self.case.place(Kind::Compression).is_some()
    }

    fn ended(&self, ended: &Ended) {
        assert_eq!((ended.status, ended.continued), (0, 1), "{ended:?}");
        if self.case.tracked {
            let sent = if self.ours.whole { Sent::Flushed } else { Sent::BrokenOff };
            assert_eq!(ended.sent, sent);
            if self.ours.whole && self.ours.framing != Framing::Head {
                assert_eq!(ended.body_bytes, self.ours.body.len() as u64);
            }
        }
    }

    fn connection(&self) {
        if self.ours.status == 0 {
            // Broken off with its head, or before.
            return assert!(self.case.answer.fails_after.is_some());
        }
        let connection = self.ours.text(header::CONNECTION);
        match self.case.version {
            Version::Http2 => {
                assert_eq!(connection, None, "HTTP/2 knows no such header");
                assert!(!self.ours.closed, "one stream's response closes no connection");
            }
            _ if self.passes_through() => assert_eq!(connection, self.theirs.text(header::CONNECTION)),
            Version::Http10 => assert!(self.ours.closed),
            Version::Http11 => {
                assert_eq!(connection, self.case.early_close.closes.then_some("close"));
                if self.ours.whole {
                    assert_eq!(self.ours.closed, self.case.early_close.closes);
                }
            }
        }
    }

    fn framing(&self) {
        let (case, ours) = (self.case, self.ours);
        if let Framing::Length(length) = ours.framing {
            assert!(!ours.whole || length == ours.body.len() as u64, "{length} is not true of {}", ours.body.len());
        }
        if self.passes_through() && !self.is_encoded() {
            // A body that fails at once takes its head with it, unless that had left: on HTTP/2 h2 drops what a reset
            // stream has queued, and which of the two comes first is a race in any server.
            let failed_with_its_head =
                case.answer.fails_after.is_some() && [ours.status, self.theirs.status].contains(&0);
            return assert!(failed_with_its_head || ours.framing == self.theirs.framing, "{:?}", self.theirs.framing);
        }
        if self.passes_through() || self.is_our_500() || !ours.whole || (self.is_encoded() && self.theirs_is_outside())
        {
            return;
        }
        let comes_at_once = case.early_close.patient || !case.answer.waits;
        let for_trailers = case.answer.trailers && case.version == Version::Http11 && case.asks.takes_trailers;
        let fits = ours.body.len() <= case.limit();
        let plain_fits = case.length() <= case.limit();
        // What leaves the function is of known length; without it, what leaves an encoder is not.
        let is_measured = if case.early_close.maps && !plain_fits && !case.answer.known { false } else { fits };
        if case.answer.declares && case.early_close.maps && for_trailers {
            // What was declared is true only of what streams: the function makes another body.
        } else if case.answer.declares && !self.is_encoded() {
            assert_eq!(ours.framing, Framing::Length(case.length() as u64));
        } else if case.answer.known && !self.is_encoded() || (is_measured && comes_at_once && !for_trailers) {
            assert_eq!(ours.framing, Framing::Length(ours.body.len() as u64));
        } else if for_trailers || (!fits && !self.is_encoded()) {
            // An encoder may say that it has ended with what was too much: then its length is known, and was true above.
            assert!(!matches!(ours.framing, Framing::Length(_)), "{:?} past the limit", ours.framing);
        }
    }

    async fn body(&self) {
        let (case, ours) = (self.case, self.ours);
        if case.answer.fails_after.is_none() {
            assert!(ours.whole && self.theirs.whole, "{:?}", ours.framing);
            assert_eq!(ours.status, self.theirs.status);
            let decoded = if self.is_encoded() { ours.decoded().await } else { ours.body.clone() };
            assert!(decoded == self.theirs.body, "{} bytes for {}", decoded.len(), self.theirs.body.len());
        } else if self.is_our_500() {
            assert!(ours.whole && ours.status == 500);
        } else if case.version != Version::Http10 || case.tracked {
            assert!(!ours.whole, "a body that fails must not look whole");
        }
        // Whether its head had left is decided by what had come, where nothing encodes.
        if let (Some(after), None) = (case.answer.fails_after, case.asks.accepts) {
            let came: usize = case.answer.pieces.iter().take(after).sum();
            let comes_at_once = case.early_close.patient || !case.answer.waits;
            let held = came <= case.limit() && comes_at_once && !self.passes_through();
            assert_eq!(self.is_our_500(), held, "{came} bytes before the error");
        }
    }

    fn headers(&self) {
        if self.is_our_500() || !self.ours.whole {
            return;
        }
        let changed = [header::CONTENT_ENCODING, header::VARY, header::ETAG, header::CONTENT_LENGTH];
        let mut rest = [comparable(&self.theirs.headers), comparable(&self.ours.headers)];
        for headers in &mut rest {
            for name in changed.iter().chain([&header::CONNECTION]) {
                headers.remove(name);
            }
            headers.remove("x-mapped");
        }
        assert_eq!(rest[0], rest[1]);

        // What the handler said of it stays said.
        for value in self.theirs.headers.get_all(header::VARY) {
            assert!(self.ours.headers.get_all(header::VARY).iter().any(|ours| ours == value));
        }
        let (theirs, ours) = (self.theirs.text(header::ETAG), self.ours.text(header::ETAG));
        let weak = theirs.map(|tag| format!("W/{tag}"));
        let by_us = self.is_encoded() && self.case.place(Kind::Compression).is_none();
        let tag = if by_us { weak.as_deref() } else { theirs };
        assert!(ours == tag || (self.is_encoded() && ours == weak.as_deref()), "{ours:?} for {theirs:?}");
        if self.is_encoded() {
            let varies = self.ours.headers.get_all(header::VARY).iter().filter(|vary| *vary == "accept-encoding");
            assert_eq!(varies.count(), 1);
            assert!(!self.case.answer.extra.contains(&("content-encoding", "identity")));
            assert_eq!(self.ours.headers.get_all(header::CONTENT_ENCODING).iter().count(), 1, "encoded once");
        } else {
            let encoding = self.theirs.text(header::CONTENT_ENCODING);
            assert_eq!(self.ours.text(header::CONTENT_ENCODING), encoding);
        }
    }

    fn trailers(&self) {
        if !self.case.answer.trailers {
            return assert!(self.ours.trailers.is_empty());
        }
        let sendable = match self.ours.framing {
            Framing::Chunks => self.case.asks.takes_trailers,
            _ => self.case.version == Version::Http2,
        };
        assert_eq!(self.ours.trailers, if sendable { trailers() } else { HeaderMap::new() });
        if !self.theirs.trailers.is_empty() {
            assert_eq!(self.ours.trailers, self.theirs.trailers);
        }
    }
}

/// Without what may differ between two responses of one server.
fn comparable(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.remove(header::DATE);
    // HEAD may leave these out (RFC 9112, section 6.1; hyper does).
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::TRAILER);
    headers
}
