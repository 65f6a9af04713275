//! A server that runs: its processes, their CPU time and memory. Linux only: these are read from `/proc`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take to answer its first connection.
pub const START: Duration = Duration::from_secs(20);

pub struct Running {
    pub address: SocketAddr,
    children: Vec<Child>,
    /// Removed at the end.
    folder: Option<PathBuf>,
}

/// `command`, on the processor that is the servers'; the load has the other one.
pub fn pinned(program: &str) -> Command {
    if crate::machine::pins() {
        let mut command = Command::new("taskset");
        command.args(["-c", "0", program]);
        command
    } else {
        Command::new(program)
    }
}

impl Running {
    /// Starts a server that prints where it listens.
    pub fn announced(command: &mut Command) -> Result<Self, String> {
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            if lines.read_line(&mut line).unwrap_or(0) == 0 {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{command:?} ended before it listened"));
            }
            let address = line.find("127.0.0.1:").and_then(|at| line[at..].trim().parse().ok());
            if let Some(address) = address {
                break address;
            }
        };
        // What it prints from now on must not fill its pipe.
        thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { address, children: vec![child], folder: None }.ready()
    }

    /// Starts processes that are known to listen at `address`.
    pub fn at(address: SocketAddr, commands: Vec<Command>, folder: PathBuf) -> Result<Self, String> {
        let mut running = Self { address, children: Vec::new(), folder: Some(folder) };
        for mut command in commands {
            running.children.push(command.spawn().map_err(|error| format!("{command:?}: {error}"))?);
        }
        running.ready()
    }

    fn ready(mut self) -> Result<Self, String> {
        let began = Instant::now();
        while began.elapsed() < START {
            if TcpStream::connect(self.address).is_ok() {
                return Ok(self);
            }
            if let Some(status) = self.children.iter_mut().find_map(|child| child.try_wait().ok().flatten()) {
                return Err(format!("it ended at once, with {status}"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err("it did not listen in time".to_owned())
    }

    /// Its processes and theirs.
    fn processes(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.children.iter().map(Child::id).collect();
        let mut next = 0;
        while next < all.len() {
            let id = all[next];
            next += 1;
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        all
    }

    /// What all threads of all its processes have run.
    pub fn cpu(&self) -> Duration {
        let threads = self.processes().into_iter().flat_map(|id| fs::read_dir(format!("/proc/{id}/task")));
        let nanos = threads.flatten().flatten().map(|thread| -> u64 {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            text.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Bytes of memory, what is shared between processes counted once (`Pss`).
    pub fn memory(&self) -> u64 {
        let kilobytes = self.processes().into_iter().map(|id| -> u64 {
            let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        });
        kilobytes.sum::<u64>() * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Those that have processes of their own are asked to end them.
        for child in &mut self.children {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        }
        let began = Instant::now();
        for child in &mut self.children {
            while began.elapsed() < Duration::from_secs(2) && matches!(child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir_all(folder);
        }
    }
}
