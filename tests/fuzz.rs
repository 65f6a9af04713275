//! What `cargo fuzz` runs, over its corpus and over random bytes: with any compiler, at every run of the tests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{fs, path::Path};

use proptest::prelude::{ProptestConfig, any, proptest};

#[cfg(all(feature = "compressed-stream", feature = "compression"))]
#[path = "../fuzz/targets/accept.rs"]
mod accept;
#[path = "../fuzz/targets/io.rs"]
mod io;
#[path = "../fuzz/targets/query.rs"]
mod query;
#[path = "../fuzz/targets/status_page.rs"]
mod status_page;

fn over_the_corpus(name: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 5, "the corpus is gone");
    for file in files {
        run(&fs::read(file).unwrap());
    }
}

#[test]
fn io_over_the_corpus() {
    over_the_corpus("io", io::run);
}

#[test]
fn query_over_the_corpus() {
    over_the_corpus("query", query::run);
}

#[test]
fn status_page_over_the_corpus() {
    over_the_corpus("status_page", status_page::run);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn io_over_random_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        io::run(&data);
    }

    #[test]
    fn query_over_random_bytes(data in proptest::collection::vec(any::<u8>(), 0..100)) {
        query::run(&data);
    }

    /// Nearly right, so that it comes past the first refusal.
    #[test]
    fn query_over_random_queries(query in "id=[a-z%0-9]{1,4}(&(body|hooks|then_ms|status|clock|redirect|read|line%0a)=[a-z0-9+%&=/]{0,5}){0,4}") {
        query::run(query.as_bytes());
    }

    #[test]
    fn status_page_over_random_bytes(data in proptest::collection::vec(any::<u8>(), 0..100)) {
        status_page::run(&data);
    }

    /// Nearly right, so that every form is asked for.
    #[test]
    fn status_page_over_random_questions(
        question in "[abc]((json|html|openmetrics|events|full|xml)?=?[&%a-z]{0,3}){0,3}(\n((text|application|\\*)/(html|json|openmetrics-text|event-stream|\\*)(;q=[01]\\.?[0-9]{0,4})?[,; ]{0,2}){0,4})?"
    ) {
        status_page::run(question.as_bytes());
    }
}

#[cfg(all(feature = "compressed-stream", feature = "compression"))]
mod encodings {
    use super::{ProptestConfig, accept, over_the_corpus, proptest};

    #[test]
    fn accept_over_the_corpus() {
        over_the_corpus("accept", accept::run);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Of pieces that mean something, and of bytes that do not.
        #[test]
        fn accept_over_random_fields(
            data in proptest::collection::vec("(x-)?gzip|br|zstd|deflate|identity|[*]|[;,\n= \t]|q|q=0|q=1|0?[.][0-9]{0,4}|.", 0..20)
        ) {
            accept::run(data.concat().as_bytes());
        }
    }
}
