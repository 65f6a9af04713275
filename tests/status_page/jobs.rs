//! Durable jobs are listed as what they are, and counted on their own.

use std::{path::PathBuf, time::Duration};

use axum::{Router, http::StatusCode, routing::post};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_epilogue::{
    Epilogue,
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = epilogue.serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let serving = tokio::spawn(serving.into_future());
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
