//! The server that is killed: this test's own binary, in a process of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tower_epilogue::{
    Epilogue,
    durable::{Durable, DurableJob, DurableStore, IdempotencyKey, JobContext, JobError},
};

const PLACE: &str = "DURABLE_KILL_PLACE";
const PROVIDER: &str = "DURABLE_KILL_PROVIDER";

pub struct Process {
    pub address: SocketAddr,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub async fn start(place: &str, provider: SocketAddr) -> Self {
        Self::run(Command::new(std::env::current_exe().unwrap()), place, provider).await
    }

    /// On a disk of its own: so many KiB, of which the ballast takes the most until it is dropped.
    pub async fn on_a_small_disk(directory: &Path, size: u32, ballast: u32, provider: SocketAddr) -> Self {
        let mut command = Command::new("unshare");
        let line = format!(
            "mount -t tmpfs -o size={size}k none \"$0\" && head -c {ballast}k /dev/zero >\"$0/ballast\" && exec \"$@\""
        );
        command.args(["--map-root-user", "--mount", "sh", "-c", &line]).arg(directory);
        command.arg(std::env::current_exe().unwrap());
        let place = format!("sqlite:{}", directory.join("orders.db").display());
        Self::run(command, &place, provider).await
    }

    async fn run(mut command: Command, place: &str, provider: SocketAddr) -> Self {
        let mut child = command
            .args(["--exact", "server_process", "--nocapture"])
            .env(PLACE, place)
            .env(PROVIDER, provider.to_string())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the server says where it listens");
                if let Some((_, address)) = line.split_once("listening on ") {
                    return address.parse().unwrap();
                }
            }
        })
        .await
        .expect("the server starts");
        // Its output goes on being read, so that it never waits for us.
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines_read = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                lines_read.lock().unwrap().push(line);
            }
        });
        Self { address, child, log }
    }

    pub fn whole_log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn has_logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Charged at the provider, under the job's key.
#[derive(Serialize, Deserialize)]
struct Order {
    order: String,
}

impl DurableJob for Order {
    const KIND: &'static str = "order";
    const LIMIT: Duration = Duration::from_secs(3);
    const CONCURRENCY: usize = 8;

    fn backoff(_: u16) -> Duration {
        Duration::from_millis(200)
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        let provider = *cx.state::<SocketAddr>()?;
        call(provider, "/charge", cx.idempotency_key(), &self.order).await?;
        // Long enough to be killed in.
        tokio::time::sleep(Duration::from_millis(20)).await;
        call(provider, "/completed", cx.idempotency_key(), &self.order).await?;
        Ok(())
    }
}

async fn call(provider: SocketAddr, path: &str, key: &str, order: &str) -> Result<(), JobError> {
    let mut stream = TcpStream::connect(provider).await?;
    let (length, process) = (order.len(), std::process::id());
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: provider\r\nconnection: close\r\nidempotency-key: {key}\r\n\
         x-process: {process}\r\ncontent-length: {length}\r\n\r\n{order}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    if reply.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("the provider said {reply:?}").into()) }
}

async fn order(
    State(()): State<()>,
    key: Option<IdempotencyKey>,
    order: String,
) -> (StatusCode, Durable, &'static str) {
    let job = Durable::new(Order { order: order.clone() });
    // With the client's key it is the job's; without one the order's own number is.
    let job = if key.is_some() { job } else { job.with_key(order) };
    (StatusCode::ACCEPTED, job, "accepted\n")
}

pub async fn serve_if_asked() {
    let (Ok(place), Ok(provider)) = (std::env::var(PLACE), std::env::var(PROVIDER)) else { return };
    let provider: SocketAddr = provider.parse().unwrap();
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stdout).with_ansi(false).init();
    let ballast = PathBuf::from(place.trim_start_matches("sqlite:")).with_file_name("ballast");
    let builder = match place.strip_prefix("sqlite:") {
        Some(file) => DurableStore::sqlite(file),
        None => DurableStore::postgres(&place).migrate(true),
    };
    let epilogue = Epilogue::new();
    let store = builder
        .register::<Order>()
        .state(provider)
        .lease(Duration::from_secs(2))
        .rescue_after(Duration::from_secs(1))
        .claim(Duration::from_secs(2))
        .poll_interval(Duration::from_millis(200))
        .leader_lease(Duration::from_millis(500))
        .start(&epilogue)
        .await
        .unwrap();
    let free = || async move { std::fs::remove_file(ballast).unwrap() };
    let app = Router::new().route("/order", post(order)).route("/free", post(free)).with_state(()).layer(store.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\nlistening on {}", listener.local_addr().unwrap());
    epilogue.serve(listener, app).await.unwrap();
}
