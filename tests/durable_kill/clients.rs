//! Clients that order until they are told that it is accepted.

use std::{
    hash::{BuildHasher, Hasher},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    sync::watch,
    task::JoinHandle,
};

use super::{Address, Book};

/// From 0 to 1.
pub fn random() -> f64 {
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(random >> 32).unwrap()) / f64::from(u32::MAX)
}

pub fn start(book: &Arc<Book>, address: &Address, running: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
    // Some ask again under a key, some under the order's own number, and two of them are curl.
    (0..8).map(|number| tokio::spawn(client(number, book.clone(), address.clone(), running.clone()))).collect()
}

async fn client(number: u32, book: Arc<Book>, address: Address, running: watch::Receiver<bool>) {
    let mut order = 0_u64;
    while *running.borrow() {
        order += 1;
        let name = format!("{number}-{order}-{}", std::process::id());
        let key = (number % 2 == 0).then(|| format!("key-{name}"));
        // A client gives up in the end, since the server may be gone for good.
        for _ in 0..200 {
            let to = *address.borrow();
            let status = if number < 2 {
                curl(to, key.as_deref(), &name).await
            } else {
                ask(to, "/order", key.as_deref(), &name).await.unwrap_or_default()
            };
            if (200..300).contains(&status) {
                book.accepted.send_modify(|accepted| {
                    accepted.insert(name);
                });
                break;
            }
            *book.refused.lock().unwrap().entry(status.to_string()).or_default() += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(10).mul_f64(random())).await;
    }
}

/// The status; an error if the server went away meanwhile.
pub async fn ask(to: std::net::SocketAddr, path: &str, key: Option<&str>, order: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(to).await?;
    let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
    let length = order.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{key}content-length: {length}\r\n\r\n{order}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    Ok(reply.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default())
}

/// The same with curl.
async fn curl(to: std::net::SocketAddr, key: Option<&str>, order: &str) -> u16 {
    let mut command = Command::new("curl");
    command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", "--data", order]);
    if let Some(key) = key {
        command.args(["-H", &format!("Idempotency-Key: \"{key}\"")]);
    }
    let output = command.arg(format!("http://{to}/order")).stdin(Stdio::null()).output().await.unwrap();
    String::from_utf8_lossy(&output.stdout).parse().unwrap_or_default()
}
