//! The machine, its processors and its versions.

use std::{fs, process::Command, sync::OnceLock, thread};

/// Whether there are processors to share out. Decided once, before this process is pinned and sees only its own.
pub fn pins() -> bool {
    static PINS: OnceLock<bool> = OnceLock::new();
    *PINS.get_or_init(|| thread::available_parallelism().is_ok_and(|cores| cores.get() > 1))
}

/// The output of a command, its first line; an error if there is no such command.
pub fn first_line(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("`{program}`: {error}"))?;
    // nginx says its version on the other stream.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default().trim().to_owned();
    if output.status.success() { Ok(line) } else { Err(format!("`{program}`: {line}")) }
}

/// Processor, cores, memory, kernel.
pub fn describe() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes: u64 = memory.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    format!(
        "{}, {cores} cores, {} GiB, Linux {}; load average at the end of the run {}",
        model.trim_start_matches([' ', '\t', ':']),
        kilobytes / 1024 / 1024,
        kernel.trim(),
        load.join(" "),
    )
}

/// A crate's version in the lock file that this was built with.
pub fn locked(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let package = format!("name = \"{name}\"\nversion = \"");
    let version = lock.split(&package).nth(1).and_then(|rest| rest.split('"').next());
    format!("{name} {}", version.unwrap_or("?"))
}

/// Today, in UTC.
pub fn date() -> String {
    first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_default()
}
