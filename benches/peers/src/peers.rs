//! Who takes part, how each is started, and what is said of it.

use std::{
    env, fs,
    net::TcpListener,
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{
    machine::{first_line, locked},
    park::Answer,
    running::{Running, START, pinned},
};

/// Threads of Puma and processes of PHP-FPM: each holds one request until its continuation has ended.
pub const WORKERS: usize = 64;

pub struct Peer {
    /// On the command line and in the plot.
    pub key: &'static str,
    pub name: &'static str,
    /// What it does with its work.
    pub means: &'static str,
    pub version: fn() -> Result<String, String>,
    /// With so many workers, if it has workers.
    pub start: fn(usize) -> Result<Running, String>,
    /// Takes part in every round, and not only in each third.
    pub close_up: bool,
    pub park: Option<Park>,
}

/// How many continuations can be parked at most.
#[derive(Clone, Copy)]
pub struct Park {
    pub most: usize,
    pub answer: Answer,
    /// Each holds a worker, which is there before it is needed: what it costs is the worker.
    pub workers: bool,
    pub why: &'static str,
}

const ALL: Option<Park> = Some(Park { most: usize::MAX, answer: Answer::Before, workers: false, why: "" });

pub const BASELINE: &str = "axum-spawn";
pub const OURS: &str = "epilogue";
pub const BARE: &str = "bare";
pub const LEAST: &str = "least";
pub const BY_HAND: &str = "by-hand";
pub const PLAIN: &str = "axum-waits";

pub const PEERS: [Peer; 13] = [
    Peer {
        key: "axum-no-work",
        name: "axum, no work at all",
        means: "for comparison: what the answer alone costs",
        version: axum_version,
        start: |_| rust("axum-no-work"),
        close_up: true,
        park: None,
    },
    Peer {
        key: PLAIN,
        name: "axum, plain",
        means: "works before it answers",
        version: axum_version,
        start: |_| rust(PLAIN),
        close_up: false,
        park: Some(Park {
            most: 15_000,
            answer: Answer::After,
            workers: false,
            why: "each waits with its connection open, and this many files may be open",
        }),
    },
    Peer {
        key: BASELINE,
        name: "axum, `tokio::spawn`",
        means: "`tokio::spawn` in the handler",
        version: axum_version,
        start: |_| rust(BASELINE),
        close_up: true,
        park: ALL,
    },
    Peer {
        key: "empty-layer",
        name: "the same, and an empty layer",
        means: "for comparison: `Router::layer` with a layer that does nothing",
        version: axum_version,
        start: |_| rust("empty-layer"),
        close_up: true,
        park: None,
    },
    Peer {
        key: BARE,
        name: "axum, bare",
        means: "for comparison: a layer that spawns the work when the body is gone, and nothing else",
        version: axum_version,
        start: |_| rust(BARE),
        close_up: true,
        park: ALL,
    },
    Peer {
        key: LEAST,
        name: "axum, the least",
        means: "for comparison: the same, under a time limit",
        version: axum_version,
        start: |_| rust(LEAST),
        close_up: true,
        park: ALL,
    },
    Peer {
        key: BY_HAND,
        name: "axum, by hand",
        means: "a layer that starts the response's work when its body is gone, `TaskTracker`, a time limit and panics \
                caught by tower-http",
        version: || Ok([axum_version()?, locked("tower"), locked("tower-http"), locked("tokio-util")].join(", ")),
        start: |_| rust(BY_HAND),
        close_up: true,
        park: ALL,
    },
    Peer {
        key: OURS,
        name: "tower-epilogue, four layers",
        means: "`Continuation`, tracked, limited, with a hook at its end",
        version: || Ok(format!("{}, {}", locked("tower-epilogue"), axum_version()?)),
        start: |_| rust(OURS),
        close_up: true,
        park: ALL,
    },
    Peer {
        key: "trillium",
        name: "trillium",
        means: "`after_send` spawns; the shutdown waits for a guard",
        version: || Ok([locked("trillium"), locked("trillium-http"), locked("trillium-tokio")].join(", ")),
        start: |_| rust("trillium"),
        close_up: true,
        park: ALL,
    },
    Peer {
        key: "starlette",
        name: "Starlette on uvicorn",
        means: "`BackgroundTask` (uvloop, httptools)",
        version: || {
            let versions = "import importlib.metadata as m, platform as p; print('Python', p.python_version() + ', ' + \
                ', '.join(n + ' ' + m.version(n) for n in ('starlette', 'uvicorn', 'uvloop', 'httptools')))";
            first_line(&python(), &["-c", versions])
        },
        start: |_| Running::announced(pinned(&python()).arg(others("starlette_peer.py"))),
        close_up: false,
        park: ALL,
    },
    Peer {
        key: "node",
        name: "Node, `http`",
        means: "goes on after `res.end`",
        version: || Ok(format!("Node {}", first_line("node", &["--version"])?)),
        start: |_| Running::announced(pinned("node").arg(others("node_peer.mjs"))),
        close_up: false,
        park: ALL,
    },
    Peer {
        key: "php-fpm",
        name: "PHP-FPM behind nginx",
        means: "`fastcgi_finish_request`; a process each",
        version: || {
            let fpm = php_fpm()?;
            Ok(format!("{}, {}", first_line(&fpm, &["-v"])?, first_line("nginx", &["-v"])?))
        },
        start: php,
        close_up: false,
        park: Some(Park { most: 200, answer: Answer::Before, workers: true, why: "a process each" }),
    },
    Peer {
        key: "puma",
        name: "Puma",
        means: "`rack.after_reply`; a thread each",
        version: || Ok(format!("{}, {}", first_line("puma", &["--version"])?, first_line("ruby", &["--version"])?)),
        start: puma,
        close_up: false,
        park: Some(Park { most: 1_000, answer: Answer::Before, workers: true, why: "a thread each" }),
    },
];

fn axum_version() -> Result<String, String> {
    Ok([locked("axum"), locked("hyper"), locked("tokio")].join(", "))
}

fn others(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "others", file].iter().collect()
}

fn python() -> String {
    env::var("PEERS_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

fn rust(kind: &str) -> Result<Running, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    Running::announced(pinned(&program.to_string_lossy()).args(["serve", kind]))
}

fn puma(workers: usize) -> Result<Running, String> {
    let threads = format!("{workers}:{workers}");
    Running::announced(
        pinned("puma")
            .args(["--quiet", "--environment", "production", "--threads", &threads])
            .args(["--bind", "tcp://127.0.0.1:0"])
            .arg(others("config.ru"))
            .env("PUMA_LOG_CONFIG", ""),
    )
}

fn php_fpm() -> Result<String, String> {
    let names = ["php-fpm", "php-fpm8.2", "/usr/sbin/php-fpm8.2", "php-fpm8.4", "/usr/sbin/php-fpm8.4"];
    let found = names.into_iter().find(|name| first_line(name, &["-v"]).is_ok());
    Ok(found.ok_or_else(|| "`php-fpm`: not installed".to_owned())?.to_owned())
}

fn php(workers: usize) -> Result<Running, String> {
    let fpm = php_fpm()?;
    let folder = env::temp_dir().join(format!("peers-{}-{workers}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    // nginx cannot say which port the system chose for it: a port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = address.map_err(|error| error.to_string())?;
    let path = folder.display();
    let pool = format!(
        "[global]\nerror_log = {path}/fpm.log\n[www]\nuser = root\ngroup = root\nlisten = {path}/fpm.sock\n\
         listen.backlog = 2048\npm = static\npm.max_children = {workers}\n"
    );
    let script = others("index.php");
    let script = script.display();
    let site = format!(
        "user root;\nworker_processes 1;\ndaemon off;\npid {path}/nginx.pid;\nerror_log {path}/nginx.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\naccess_log off;\nclient_max_body_size 64m;\nkeepalive_requests 100000000;\n\
         client_body_temp_path {path}/body;\nfastcgi_temp_path {path}/fastcgi;\nproxy_temp_path {path}/proxy;\n\
         scgi_temp_path {path}/scgi;\nuwsgi_temp_path {path}/uwsgi;\n\
         server {{\nlisten {address} backlog=2048;\nlocation / {{\nfastcgi_pass unix:{path}/fpm.sock;\n\
         fastcgi_param SCRIPT_FILENAME {script};\nfastcgi_param REQUEST_METHOD $request_method;\n\
         fastcgi_param CONTENT_LENGTH $content_length;\nfastcgi_param DOCUMENT_URI $document_uri;\n}}\n}}\n}}\n"
    );
    let (pool_file, site_file) = (folder.join("fpm.conf"), folder.join("nginx.conf"));
    fs::write(&pool_file, pool).and_then(|()| fs::write(&site_file, site)).map_err(|error| error.to_string())?;
    let mut workers = pinned(&fpm);
    workers.args(["--nodaemonize", "--allow-to-run-as-root", "--fpm-config"]).arg(pool_file);
    let mut front = pinned("nginx");
    front.arg("-e").arg(folder.join("nginx.log")).arg("-c").arg(site_file);
    let socket = folder.join("fpm.sock");
    let running = Running::at(address, vec![workers, front], folder)?;
    // nginx is ready before the processes behind it are.
    let began = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        if began.elapsed() > START {
            return Err("PHP-FPM did not listen in time".to_owned());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(running)
}
