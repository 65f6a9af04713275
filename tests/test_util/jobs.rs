//! Durable jobs beside what is asked for.

use std::sync::Mutex;

use axum::{Router, routing::post};
use serde::{Deserialize, Serialize};
use tower_epilogue::{
    End, Epilogue, ShutdownHookLayer,
    durable::{Durable, DurableJob, DurableStore, JobContext, JobError},
    test_util::{TestServer, every_await_point},
};

static RAN: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(0);

#[derive(Serialize, Deserialize)]
struct Welcome;

impl DurableJob for Welcome {
    const KIND: &'static str = "welcome";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        RAN.add_permits(1);
        Ok(())
    }
}

#[tokio::test]
async fn the_story_of_a_turn_is_that_of_its_request() {
    let directory = std::env::temp_dir().join(format!("epilogue-turns-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let routes = Mutex::new(Vec::new());
    let points = every_await_point(async |server| {
        let path = directory.join(format!("{:?}.db", server.point()));
        let app = async |epilogue: &Epilogue| {
            let store = DurableStore::sqlite(path).register::<Welcome>().start(epilogue).await.unwrap();
            // The request ends after the attempt has begun.
            let hook = ShutdownHookLayer::new(async |_: End| RAN.acquire().await.unwrap().forget());
            Router::new().route("/signup", post(async || Durable::new(Welcome))).layer((hook, store.layer()))
        };
        // At an await point inside of the layer nobody is promised anything: there is no job to wait for.
        if server.point().is_some() {
            return;
        }
        let request = "POST /signup HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n";
        let story = server.send_to(TestServer::builder(), app, request).await;
        story.assert_contract();
        routes.lock().unwrap().push(story.route().to_owned());
    })
    .await;
    assert!(points > 0, "the job is stored");
    assert_eq!(*routes.lock().unwrap(), ["POST /signup"]);
    std::fs::remove_dir_all(directory).unwrap();
}
