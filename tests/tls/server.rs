//! A TLS server in an accept loop of its own, and clients that end their TLS themselves.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    },
};
use tower::Layer as _;
use tower_epilogue::{DrainReport, Epilogue, TrackedIo, TrackedSocket, Tracking};

use crate::support::Journal;

/// Bytes that went through one socket: on the server those that the kernel took, on the client those that it read.
#[derive(Clone, Debug, Default)]
pub struct Through(Arc<AtomicU64>);

impl Through {
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::SeqCst);
    }
}

/// A socket below the encryption.
#[derive(Debug)]
pub struct Counted<S> {
    socket: S,
    read: Through,
    written: Through,
}

impl<S> Counted<S> {
    fn new(socket: S) -> Self {
        Self { socket, read: Through::default(), written: Through::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        self.read.add(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.socket).poll_write(cx, buf))?;
        self.written.add(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

struct Certificate {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

fn certificate() -> &'static Certificate {
    static MADE: OnceLock<Certificate> = OnceLock::new();
    MADE.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Certificate { certificate: made.cert.der().clone(), key: made.signing_key.serialize_der() }
    })
}

fn acceptor() -> TlsAcceptor {
    let Certificate { certificate, key } = certificate();
    let key = PrivateKeyDer::Pkcs8(key.clone().into());
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A listener for `Epilogue::serve`, which knows nothing of the encryption. One handshake after the other is enough here.
pub struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsListener {
    pub async fn bind() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), acceptor: acceptor() }
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = self.listener.accept().await.unwrap();
        (self.acceptor.accept(stream).await.unwrap(), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// The server, with its accept loop.
pub struct Tls {
    pub address: SocketAddr,
    pub journal: Journal,
    epilogue: Epilogue,
    accepting: JoinHandle<()>,
}

impl Tls {
    pub async fn start(app: Router) -> Self {
        Self::with(app, Tracking::new(), None).await
    }

    /// With send buffers of that size, if given.
    pub async fn with(app: Router, tracking: Tracking, send_buffer: Option<u32>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(size) = send_buffer {
            socket.set_send_buffer_size(size).unwrap();
        }
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let journal = Journal::default();
        let epilogue = journal.epilogue().build();
        let accepting = tokio::spawn(accept(listener, acceptor(), epilogue.clone(), app, tracking));
        Self { address, journal, epilogue, accepting }
    }

    pub async fn stop(self) -> DrainReport {
        self.accepting.abort();
        self.epilogue.drain().await
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, epilogue: Epilogue, app: Router, tracking: Tracking) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, epilogue, app, tracking) = (acceptor.clone(), epilogue.clone(), app.clone(), tracking.clone());
        tokio::spawn(async move {
            let socket = TrackedSocket::new(stream, &tracking);
            let below = socket.handle();
            let socket = Counted::new(socket);
            let taken = socket.written.clone();
            let encrypted = acceptor.accept(socket).await.unwrap();
            let io = TrackedIo::over(encrypted, &below, &tracking);
            let app = Extension(taken).layer(app);
            let service = TowerToHyperService::new(epilogue.wrap(&io, app));
            // How it ends is its client's choice.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(io), service)
                .await;
        });
    }
}

/// A client's side of the encryption.
pub type Encrypted = TlsStream<Counted<TcpStream>>;

/// Connects, for `h2` or `http/1.1`.
pub async fn connect(address: SocketAddr, protocol: &str, receive_buffer: Option<u32>) -> Encrypted {
    let mut roots = RootCertStore::empty();
    roots.add(certificate().certificate.clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(size) = receive_buffer {
        socket.set_recv_buffer_size(size).unwrap();
    }
    let stream = socket.connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let encrypted = TlsConnector::from(Arc::new(config)).connect(name, Counted::new(stream)).await.unwrap();
    assert_eq!(encrypted.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    encrypted
}

/// What the client has read from the network.
pub fn received(encrypted: &Encrypted) -> Through {
    encrypted.get_ref().0.read.clone()
}

pub fn socket(encrypted: &Encrypted) -> &TcpStream {
    &encrypted.get_ref().0.socket
}
