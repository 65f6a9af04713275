//! Durable jobs are listed as what they are, and counted on their own.

use std::{path::PathBuf, time::Duration};

use axum::{Router, http::StatusCode, routing::post};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tower_epilogue::{
    DrainReport, Epilogue,
    durable::{Durable, DurableJob, DurableStore, JobContext, JobError},
};

use crate::support::{Client, Gate, soon};

#[derive(Serialize, Deserialize)]
struct Charge {
    order: String,
}

impl DurableJob for Charge {
    const KIND: &'static str = "charge";
    const LIMIT: Duration = Duration::from_secs(60);

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        cx.state::<Gate>()?.passed().await;
        Ok(())
    }
}

async fn order() -> (StatusCode, Durable, &'static str) {
    (StatusCode::ACCEPTED, Durable::new(Charge { order: "marker-payload".to_owned() }), "accepted")
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Its address, what stops it when it is dropped, and what it ends with.
async fn serve(
    epilogue: &Epilogue,
    app: Router,
) -> (std::net::SocketAddr, oneshot::Sender<()>, JoinHandle<std::io::Result<DrainReport>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = epilogue.serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    (address, stop, tokio::spawn(serving.into_future()))
}

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut client = Client::connect(address).await;
    client.send(&format!("{request} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")).await;
    client.reply().await.text()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_runs_is_listed_with_its_kind() {
    let folder = Folder(std::env::temp_dir().join(format!("epilogue-page-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let held = Gate::closed();
    let epilogue = Epilogue::builder().status_page().build();
    let store = DurableStore::sqlite(folder.0.join("jobs.db")).register::<Charge>().state(held.clone());
    let store = store.start(&epilogue).await.unwrap();
    let app = Router::new().route("/order", post(order)).layer(store.layer()).nest("/status", epilogue.status_page());
    let (address, stop, serving) = serve(&epilogue, app).await;
    assert_eq!(ask(address, "POST /order").await, "accepted");
    // A client cannot pass for a job.
    ask(address, "JOB /charge").await;
    let page = soon("the job runs", async {
        loop {
            let page: serde_json::Value = serde_json::from_str(&ask(address, "GET /status/json").await).unwrap();
            if page["jobs"]["in_flight"] == 1 && page["requests"]["ended"] == 2 {
                return page;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let live = page["live"].as_array().unwrap();
    assert_eq!((live.len(), &live[0]["route"]), (1, &"JOB /charge".into()), "{page:#}");
    assert_eq!((&live[0]["durable_job"], &live[0]["phase"]), (&true.into(), &"continuing".into()));
    assert_eq!((&page["requests"]["accepted"], &page["jobs"]["ended"]), (&2.into(), &0.into()));
    let fake = page["slowest"].as_array().unwrap().iter().find(|row| row["route"] == "JOB /charge").unwrap();
    assert_eq!(fake["durable_job"], false);
    let html = ask(address, "GET /status").await;
    assert!(html.contains("JOB /charge<span class=\"quiet\"> durable job</span>"), "{html}");
    assert!(!html.contains("marker-payload"));
    held.open();
    soon("the job ends", async {
        while !ask(address, "GET /status/metrics").await.contains("epilogue_pool_jobs_total 1\n") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(stop);
    soon("the drain", serving).await.unwrap().unwrap();
    drop(folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_was_put_back_without_having_run_is_no_attempt() {
    use axum::{
        body::{Body, to_bytes},
        http::Request,
        routing::get,
    };
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    use tower::ServiceExt as _;
    use tower_epilogue::Continuation;

    let folder = Folder(std::env::temp_dir().join(format!("epilogue-page-back-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let held = Gate::closed();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    // That of this process: no other test of this suite switches metrics on.
    recorder.install().unwrap();
    let epilogue = Epilogue::builder().max_running(1).status_page().metrics().build();
    let store = DurableStore::sqlite(folder.0.join("jobs.db")).register::<Charge>().state(held.clone());
    let store = store.start(&epilogue).await.unwrap();
    let page = async || -> serde_json::Value {
        let request = Request::get("/json").body(Body::empty()).unwrap();
        let page = epilogue.status_page::<()>().oneshot(request).await.unwrap();
        serde_json::from_slice(&to_bytes(page.into_body(), usize::MAX).await.unwrap()).unwrap()
    };
    let gate = held.clone();
    let takes_the_place = async move || (Continuation::new(async move { gate.passed().await }), "accepted");
    let app: Router = Router::new().route("/", get(takes_the_place));
    let (address, stop, serving) = serve(&epilogue, app).await;
    assert_eq!(ask(address, "GET /").await, "accepted");
    store.enqueue(Durable::new(Charge { order: "1".to_owned() })).await.unwrap();
    soon("the job waits", async {
        while page().await["now"]["waiting"] != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(stop);
    soon("it is put back", async {
        while page().await["jobs"]["in_flight"] != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    held.open();
    assert!(soon("the drain", serving).await.unwrap().unwrap().is_clean());
    let page = page().await;
    assert_eq!((&page["jobs"]["ended"], &page["requests"]["ended"]), (&0.into(), &1.into()), "{page:#}");
    let ended = snapshotter.snapshot().into_vec().into_iter().filter_map(|(key, _, _, value)| match value {
        DebugValue::Counter(count) if key.key().name().ends_with("requests_total") => Some(count),
        _ => None,
    });
    assert_eq!(ended.sum::<u64>(), 1);
    drop(folder);
}
