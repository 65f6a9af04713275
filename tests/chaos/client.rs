//! The clients: what each did, and what it got.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::plan::{Deed, Leave, Protocol, Visit};

/// No response takes so long.
const HANGS: Duration = Duration::from_secs(25);

/// What became of a request, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The response came whole, with this status.
    Whole(u16),
    /// The client stayed, and the response did not come, or not whole.
    Broken,
    /// The client left before it had all of the response.
    Left,
    /// It was not sent: the connection had ended.
    NotSent,
    /// Nothing came to an end.
    Hangs,
}

pub type Outcomes = Vec<(u64, Outcome)>;

pub async fn visit(address: SocketAddr, visit: Visit) -> Outcomes {
    sleep(visit.begins).await;
    let Ok(stream) = TcpStream::connect(address).await else {
        return visit.requests.iter().map(|(number, _)| (*number, Outcome::NotSent)).collect();
    };
    let _ = stream.set_nodelay(true);
    match visit.protocol {
        Protocol::Http10 | Protocol::Http11 => http1(stream, &visit).await,
        Protocol::Http2 => http2(stream, &visit).await,
    }
}

// === HTTP/1 ===

fn request(protocol: Protocol, number: u64, upload: usize) -> Vec<u8> {
    let version = if protocol == Protocol::Http10 { "1.0" } else { "1.1" };
    let encoding = if number % 5 == 0 { "accept-encoding: gzip\r\n" } else { "" };
    let head = match upload {
        0 => format!("GET /{number} HTTP/{version}\r\nhost: test\r\n{encoding}\r\n"),
        _ => format!("POST /{number} HTTP/{version}\r\nhost: test\r\n{encoding}content-length: {upload}\r\n\r\n"),
    };
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + upload, b'u');
    bytes
}

async fn http1(mut stream: TcpStream, visit: &Visit) -> Outcomes {
    let mut outcomes = Vec::new();
    let mut buffer = Vec::new();
    let all: Vec<_> = visit.requests.iter().map(|(number, upload)| request(visit.protocol, *number, *upload)).collect();
    let mut sent = 0;
    for (place, ((number, _), deed)) in visit.requests.iter().zip(&visit.deeds).enumerate() {
        if sent <= place {
            let next = if visit.pipelined { all[place..].concat() } else { all[place].clone() };
            sent = if visit.pipelined { all.len() } else { place + 1 };
            // It may answer before it has read all, and close.
            let write = async {
                let (mut read, mut write) = stream.split();
                let writes = write.write_all(&next);
                tokio::pin!(writes);
                loop {
                    let mut more = [0; 4096];
                    tokio::select! {
                        biased;
                        written = &mut writes => return written,
                        count = read.read(&mut more) => match count? {
                            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                            count => buffer.extend_from_slice(&more[..count]),
                        }
                    }
                }
            };
            let _ = timeout(HANGS, write).await;
        }
        let outcome = deed_on_http1(&mut stream, &mut buffer, *deed).await;
        outcomes.push((*number, outcome));
        if outcome == Outcome::Left {
            leave(stream, *deed).await;
            let behind = if sent > place { Outcome::Left } else { Outcome::NotSent };
            let rest = visit.requests[place + 1..].iter().enumerate();
            outcomes.extend(
                rest.map(|(at, (number, _))| (*number, if place + 1 + at < sent { behind } else { Outcome::NotSent })),
            );
            return outcomes;
        }
        if !matches!(outcome, Outcome::Whole(_)) {
            outcomes.extend(visit.requests[place + 1..].iter().map(|(number, _)| (*number, Outcome::Broken)));
            return outcomes;
        }
    }
    outcomes
}

async fn deed_on_http1(stream: &mut TcpStream, buffer: &mut Vec<u8>, deed: Deed) -> Outcome {
    match deed {
        Deed::Reads => timeout(HANGS, response(stream, buffer, None, Duration::ZERO)).await.unwrap_or(Outcome::Hangs),
        Deed::ReadsSlowly => {
            let slowly = response(stream, buffer, None, Duration::from_micros(300));
            timeout(HANGS, slowly).await.unwrap_or(Outcome::Hangs)
        }
        Deed::LeavesAfter(moment, _) => {
            timeout(moment, response(stream, buffer, None, Duration::ZERO)).await.unwrap_or(Outcome::Left)
        }
        Deed::LeavesAt(count, _) => {
            let some = response(stream, buffer, Some(count), Duration::ZERO);
            // A handler that never answers gives nothing to leave at.
            timeout(Duration::from_millis(200), some).await.unwrap_or(Outcome::Left)
        }
    }
}

async fn leave(mut stream: TcpStream, deed: Deed) {
    let (Deed::LeavesAfter(_, how) | Deed::LeavesAt(_, how)) = deed else { return };
    match how {
        Leave::Fin => {
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = timeout(HANGS, stream.read_to_end(&mut rest)).await;
        }
        Leave::Close => {}
        Leave::Reset => {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Reads one response; `Left` once there are `most` bytes of it and it is not whole.
async fn response(stream: &mut TcpStream, buffer: &mut Vec<u8>, most: Option<usize>, pause: Duration) -> Outcome {
    loop {
        if let Some((status, length)) = whole(buffer, false) {
            buffer.drain(..length);
            return Outcome::Whole(status);
        }
        if most.is_some_and(|most| buffer.len() >= most) {
            return Outcome::Left;
        }
        if !pause.is_zero() {
            sleep(pause).await;
        }
        match stream.read_buf(buffer).await {
            Ok(0) => return whole(buffer, true).map_or(Outcome::Broken, |(status, _)| Outcome::Whole(status)),
            Ok(_) => {}
            Err(_) => return Outcome::Broken,
        }
    }
}

fn find(bytes: &[u8], marker: &[u8]) -> Option<usize> {
    bytes.windows(marker.len()).position(|window| window == marker)
}

/// The status and the length of a whole response at the front of `bytes`.
fn whole(bytes: &[u8], ended: bool) -> Option<(u16, usize)> {
    let head_end = find(&bytes[..bytes.len().min(4096)], b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
    let status: u16 = head.get(9..12)?.parse().ok()?;
    let header = |name: &str| head.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
    if matches!(status, 204 | 304) {
        return Some((status, head_end));
    }
    if header("transfer-encoding:").is_some() {
        let mut at = head_end;
        loop {
            let line = find(&bytes[at..bytes.len().min(at + 32)], b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
            at += line + 2 + size + 2;
            if at > bytes.len() {
                return None;
            }
            if size == 0 {
                return Some((status, at));
            }
        }
    }
    match header("content-length:") {
        Some(length) => {
            let end = head_end + length.parse::<usize>().ok()?;
            (bytes.len() >= end).then_some((status, end))
        }
        None => ended.then_some((status, bytes.len())),
    }
}

// === HTTP/2 ===

async fn http2(stream: TcpStream, visit: &Visit) -> Outcomes {
    let missed = || visit.requests.iter().map(|(number, _)| (*number, Outcome::Broken)).collect();
    let Ok(Ok((send, connection))) = timeout(HANGS, h2::client::handshake(stream)).await else {
        return missed();
    };
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    let lost = visit.lost.map(|after| {
        let driver = driver.abort_handle();
        let at = Instant::now() + after;
        (at, async move {
            sleep(after).await;
            driver.abort();
        })
    });
    let (lost_at, loses) = match lost {
        Some((at, loses)) => (Some(at), Some(tokio::spawn(loses))),
        None => (None, None),
    };
    let mut streams = Vec::new();
    for ((number, upload), deed) in visit.requests.iter().copied().zip(visit.deeds.iter().copied()) {
        let send = send.clone();
        streams.push(async move {
            let outcome = timeout(HANGS, exchange(send, number, upload, deed)).await.unwrap_or(Outcome::Hangs);
            // What broke because we lost the connection was our leaving.
            let broke_late = outcome == Outcome::Broken && lost_at.is_some_and(|at| Instant::now() >= at);
            (number, if broke_late { Outcome::Left } else { outcome })
        });
    }
    let outcomes = futures_util::future::join_all(streams).await;
    drop(send);
    if let Some(loses) = loses {
        let _ = loses.await;
    }
    let abort = driver.abort_handle();
    if timeout(HANGS, driver).await.is_err() {
        abort.abort();
    }
    outcomes
}

async fn exchange(send: h2::client::SendRequest<Bytes>, number: u64, upload: usize, deed: Deed) -> Outcome {
    let method = if upload == 0 { "GET" } else { "POST" };
    let request = http::Request::builder().method(method).uri(format!("http://test/{number}")).body(());
    let Ok(mut send) = send.ready().await else { return Outcome::NotSent };
    let Ok((response, mut body)) = send.send_request(request.unwrap(), upload == 0) else { return Outcome::NotSent };
    if upload > 0 {
        let _ = body.send_data(vec![b'u'; upload].into(), true);
    }
    let (most, pause) = match deed {
        Deed::LeavesAt(count, _) => (Some(count), Duration::ZERO),
        Deed::ReadsSlowly => (None, Duration::from_micros(300)),
        _ => (None, Duration::ZERO),
    };
    let read = read_http2(response, most, pause);
    match deed {
        Deed::LeavesAfter(moment, _) => timeout(moment, read).await.unwrap_or(Outcome::Left),
        Deed::LeavesAt(..) => timeout(Duration::from_millis(200), read).await.unwrap_or(Outcome::Left),
        Deed::Reads | Deed::ReadsSlowly => read.await,
    }
}

async fn read_http2(response: h2::client::ResponseFuture, most: Option<usize>, pause: Duration) -> Outcome {
    let Ok(response) = response.await else { return Outcome::Broken };
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut count = 0;
    loop {
        if body.is_end_stream() {
            return Outcome::Whole(status);
        }
        if most.is_some_and(|most| count >= most) {
            return Outcome::Left;
        }
        if !pause.is_zero() {
            sleep(pause).await;
        }
        match body.data().await {
            Some(Ok(data)) => {
                count += data.len();
                let _ = body.flow_control().release_capacity(data.len());
            }
            Some(Err(_)) => return Outcome::Broken,
            None => match body.trailers().await {
                Ok(_) => return Outcome::Whole(status),
                Err(_) => return Outcome::Broken,
            },
        }
    }
}
