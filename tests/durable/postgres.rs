//! A Postgres of the tests' own: a cluster in a directory of its own, on a port of its own, gone when the test is.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

pub struct Cluster {
    directory: PathBuf,
    binaries: PathBuf,
    port: u16,
    settings: &'static str,
    /// Ends the server at a line, and the whole cluster when there comes none any more: also if this process is killed.
    keeper: Option<Child>,
}

/// The newest server that is installed.
fn binaries() -> PathBuf {
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|path: &PathBuf| path.join("postgres").exists());
    found.sort();
    found.pop().unwrap_or_else(|| panic!("these tests need a Postgres server: apt-get install postgresql"))
}

/// Runs a shell line as somebody whom Postgres accepts: it refuses to be root.
fn unprivileged(line: &str) -> Command {
    let root = Command::new("id").arg("-u").output().unwrap().stdout.trim_ascii() == b"0";
    let mut command = if root { Command::new("runuser") } else { Command::new("sh") };
    if root {
        command.args(["-u", "postgres", "--", "sh"]);
    }
    command.args(["-c", line]).current_dir("/");
    command
}

fn run(line: &str) {
    let output = unprivileged(line).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Cluster {
    pub fn start() -> Self {
        // What is killed here is our own process and not the machine: the kernel keeps what it was given, so that
        // nothing is lost without it. A short log: each new database writes all of its catalogue to it.
        Self::with("-c fsync=off -c min_wal_size=32MB -c max_wal_size=64MB")
    }

    pub fn with(settings: &'static str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("epilogue-pg-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        let mut cluster = Self { directory, binaries: binaries(), port: 0, settings, keeper: None };
        let (bin, data) = (cluster.binaries.display(), cluster.directory.display());
        run(&format!("{bin}/initdb -D {data} -U postgres -A trust -N --no-locale -E UTF8"));
        // Free now: another test may take it before the server does.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let started = (0..10).any(|_| {
            cluster.port = free();
            cluster.comes_up()
        });
        assert!(started, "Postgres finds no port");
        cluster
    }

    /// Starts the server once more, on the port that it had, and waits until it answers.
    pub fn up(&mut self) {
        assert!((0..100).any(|_| self.comes_up()), "Postgres does not get its port again");
    }

    /// False if its port is taken.
    fn comes_up(&mut self) -> bool {
        let (bin, data, port) = (self.binaries.display(), self.directory.display(), self.port);
        let settings = format!("-c max_connections=200 -c listen_addresses=127.0.0.1,::1 {}", self.settings);
        let line = format!(
            "{bin}/postgres -D {data} -p {port} -k {data} {settings} >>{data}/log 2>&1 & server=$!; read _; \
             asked=$?; kill -QUIT $server; wait $server; [ $asked = 0 ] || rm -rf {data}"
        );
        let keeper = unprivileged(&line).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        self.keeper = Some(keeper);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.answers() {
            let log = self.directory.join("log");
            let told = fs::read_to_string(&log).unwrap_or_default();
            if told.contains("could not create any TCP/IP sockets") {
                self.down();
                fs::remove_file(&log).unwrap();
                return false;
            }
            assert!(Instant::now() < deadline, "Postgres does not start: {told}");
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    fn answers(&self) -> bool {
        Command::new(self.binaries.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Ends the server at once, as a crash of its own would.
    pub fn down(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            if let Some(mut line) = keeper.stdin.take() {
                let _ = line.write_all(b"\n");
            }
            let _ = keeper.wait();
        }
    }

    /// A new, empty database.
    pub fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (bin, port) = (self.binaries.display(), self.port);
        run(&format!("{bin}/createdb -h 127.0.0.1 -p {port} -U postgres {name}"));
        format!("postgres://postgres@127.0.0.1:{port}/{name}")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        match self.keeper.take() {
            Some(mut keeper) => {
                drop(keeper.stdin.take());
                let _ = keeper.wait();
            }
            None => drop(unprivileged(&format!("rm -rf {}", self.directory.display())).status()),
        }
    }
}

/// The one that tests share which do not restart theirs.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    // A static is never dropped; its keeper sees this process end.
    SHARED.get_or_init(Cluster::start)
}
