//! Where a written response ends, and what becomes of the rest of its producer.

use std::time::Duration;

use axum::{Router, http::header::CONTENT_LENGTH, routing::get};
use futures_util::FutureExt as _;
use tower_epilogue::{EarlyCloseLayer, Lifecycle, Output, OutputError, TimeLimitLayer};

use crate::{
    support::{Gate, MemoryServer, Notes, Server, ends, h2client::Http2},
    written,
};

#[tokio::test]
async fn after_finish_a_write_is_an_error_value_and_nothing_more() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let app = written(move |mut output| {
        let notes = theirs.clone();
        async move {
            output.write("whole").await?;
            output.finish().await?;
            let late = output.write("late").await.unwrap_err();
            assert!(late.is_finished() && !late.is_closed());
            assert!(output.finish().await.unwrap_err().is_finished());
            assert_eq!(output.flush().await, Ok(()));
            assert!(!output.is_closed());
            notes.add("went on");
            Ok(())
        }
    });
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "5\r\nwhole\r\n0\r\n\r\n");
    assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().body, b"whole");
    server.journal.ended(2).await;
    assert_eq!(notes.all(), ["went on", "went on"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn what_a_producer_does_after_finish_is_a_continuation() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let app = written(move |mut output| {
        let (notes, gate) = (theirs.clone(), opens.clone());
        async move {
            output.write("whole").await?;
            output.finish().await?;
            notes.add("after");
            gate.passed().await;
            notes.add("went on");
            Ok(())
        }
    });
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    // The client has it all while the rest still runs, and its leaving ends nothing.
    client.read_until("whole\r\n0\r\n\r\n").await;
    notes.seen("after").await;
    client.reset();
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["after", "went on"]);
    let lines = server.journal.lines();
    let expected = ["body_end/0", "flushed:5/0", "continuation_start/0", "continuation_end/0", "ended/0"];
    assert_eq!(lines[lines.len() - 5..], expected);
}

#[tokio::test(start_paused = true)]
async fn the_time_limit_bounds_the_producer_before_and_after_its_response() {
    for finishes in [false, true] {
        let notes = Notes::default();
        let (hook, mut told) = ends();
        let theirs = notes.clone();
        let app = written(move |mut output| {
            let notes = theirs.clone();
            async move {
                let _dropped = notes.on_drop("dropped");
                output.write("first").await?;
                if finishes {
                    output.finish().await?;
                }
                tokio::time::sleep(Duration::from_secs(11)).await;
                notes.add("overtime");
                Ok(())
            }
        });
        let server = MemoryServer::start(app.layer((hook, TimeLimitLayer::new(Duration::from_secs(10)))));
        let reply = server.get("/").await;
        assert_eq!(reply.dechunked().is_some(), finishes, "what was cut does not look whole: {:?}", reply.text());
        server.ended(1).await;
        let (status, sent) = told.recv().await.unwrap();
        assert!(status.is_timeout());
        assert_eq!(sent.is_flushed(), finishes, "{sent:?}");
        assert_eq!(notes.all(), ["dropped"]);
    }
}

#[tokio::test]
async fn what_did_not_come_to_its_end_never_looks_whole() {
    let elsewhere = async || {
        let (mut output, response) = Output::channel();
        tokio::spawn(async move {
            output.write("half").await.unwrap();
            output.flush().await.unwrap();
            // Dropped here, without a `finish`.
        });
        response
    };
    let fails = async |lifecycle: Lifecycle| {
        lifecycle.output(async |mut output: Output| {
            output.write("half").await?;
            output.flush().await?;
            Err::<(), Box<dyn std::error::Error + Send + Sync>>("the other half is missing".into())
        })
    };
    let panics = async |lifecycle: Lifecycle| {
        lifecycle.output(async |mut output: Output| {
            output.write("half").await?;
            output.flush().await?;
            if output.write("").await.is_ok() {
                panic!("the other half is missing");
            }
            Ok::<_, OutputError>(())
        })
    };
    let app = Router::new().route("/dropped", get(elsewhere)).route("/fails", get(fails)).route("/panics", get(panics));
    let server = Server::start(app).await;
    for path in ["/dropped", "/fails", "/panics"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 200);
        assert!(reply.text().contains("half") && reply.dechunked().is_none(), "{path}: {:?}", reply.text());
        let error = Http2::connect(server.address).await.get(path).await.unwrap_err();
        assert!(error.is_reset(), "{path}: {error}");
    }
    server.journal.ended(6).await;
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_producer_that_dropped_its_output_says_with_its_return_that_this_was_all() {
    let produce = async |mut output: Output| {
        output.write("all").await?;
        drop(output);
        tokio::task::yield_now().await;
        Ok(())
    };
    let server = Server::start(written(produce)).await;
    assert_eq!(server.get("/").await.dechunked().unwrap(), b"all");
}

#[tokio::test]
async fn an_output_that_outlives_its_producer_ends_the_response_itself() {
    let produce = async |mut output: Output| {
        output.write("one ").await?;
        tokio::spawn(async move {
            output.write("two").await.unwrap();
            output.finish().await.unwrap();
        });
        Ok(())
    };
    let server = Server::start(written(produce)).await;
    assert_eq!(server.get("/").await.dechunked().unwrap(), b"one two");
}

#[tokio::test]
async fn head_runs_a_producer_only_to_be_measured() {
    for measured in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let app = written(move |_| {
            theirs.add("produced");
            std::future::ready(Ok(()))
        });
        let server = Server::start(if measured { app.layer(EarlyCloseLayer::new()) } else { app }).await;
        let mut client = server.connect().await;
        client.send("HEAD / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.body.len()), (200, 0));
        server.journal.ended(1).await;
        let expected: &[&str] = if measured { &["produced"] } else { &[] };
        assert_eq!(notes.all(), expected);
    }
}

#[tokio::test]
async fn a_response_that_is_thrown_away_is_closed_to_its_writer() {
    let (mut output, response) = Output::channel();
    output.write("x").await.unwrap();
    drop(response);
    assert!(output.is_closed());
    let error = output.write("x").await.unwrap_err();
    assert!(error.is_closed());
    assert!(error.to_string().contains("nobody reads this output"), "{error}");
    assert!(output.flush().await.unwrap_err().is_closed());
    assert!(output.finish().await.unwrap_err().is_closed());
}

/// An HTTP/1 server lets go of a body of declared length when it has so many bytes, without asking for its end.
#[tokio::test]
async fn finish_succeeds_also_where_a_declared_length_was_the_end() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let produced = async move |lifecycle: Lifecycle| {
        let produce = async move |mut output: Output| {
            output.write("whole").await?;
            theirs.add(format!("{:?}", output.finish().await));
            Ok::<_, OutputError>(())
        };
        ([(CONTENT_LENGTH, "5")], lifecycle.output(produce))
    };
    let theirs = notes.clone();
    let elsewhere = async move |lifecycle: Lifecycle| {
        let (mut output, response) = Output::channel();
        let work = async move {
            output.write("whole").await.unwrap();
            theirs.add(format!("{:?}", output.finish().await));
        };
        let _ = tokio::join!(lifecycle.finish(([(CONTENT_LENGTH, "5")], response)), work);
    };
    let app = Router::new().route("/produced", get(produced)).route("/elsewhere", get(elsewhere));
    let server = Server::start(app).await;
    for path in ["/produced", "/elsewhere"] {
        let reply = server.get(path).await;
        assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("5"), "whole"), "{path}");
        let reply = Http2::connect(server.address).await.get(path).await.unwrap();
        assert_eq!(reply.body, b"whole", "{path}");
    }
    server.journal.ended(4).await;
    assert_eq!(notes.all(), ["Ok(())"; 4]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn an_error_after_finish_is_that_of_a_continuation() {
    let opened = Gate::closed();
    for gate in [None, Some(opened.clone())] {
        let failures = Notes::default();
        let theirs = failures.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let waits = gate.clone();
            lifecycle.output(async move |mut output: Output| {
                output.write("whole").await?;
                // The first poll is enough to end the response.
                assert!(waits.is_some() || output.finish().now_or_never().is_none());
                if let Some(gate) = waits {
                    output.finish().await?;
                    gate.passed().await;
                }
                Err::<(), Box<dyn std::error::Error + Send + Sync>>("the mail server is gone".into())
            })
        };
        let server = Server::with(Router::new().route("/", get(handler)), |builder| {
            builder.on_failure(move |failure| {
                theirs.add(format!("{}: {}", failure.route, failure.error));
                std::future::ready(())
            })
        })
        .await;
        assert_eq!(server.get("/").await.dechunked().unwrap(), b"whole");
        opened.open();
        server.journal.ended(1).await;
        assert_eq!(failures.all(), ["GET /: the mail server is gone"]);
        let lines = server.journal.lines();
        let expected = ["continuation_start/0", "continuation_failed/0", "continuation_end/0", "ended/0"];
        assert_eq!(lines[lines.len() - 4..], expected);
    }
}
