//! The pages that promise something are held to what they say: the tests that they name exist, the counters that they
//! list are the counters, and the numbers in the table of bounds are those of the code.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use catga::limits;

const SEMANTICS: &str = include_str!("../src/semantics.md");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every word between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_name(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The functions of all Rust files below a folder, by name.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                functions(&path, names);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let after_fn = text.split("fn ").skip(1);
            names.extend(after_fn.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned()));
        }
    }
}

/// The paragraphs that begin with "Test".
fn test_paragraphs(page: &str) -> Vec<&str> {
    page.split("\n\n").filter(|paragraph| paragraph.starts_with("Test:")).collect()
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let mut known = BTreeSet::new();
    for folder in ["codec", "discovery", "engine"] {
        functions(&root().join(folder), &mut known);
    }
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let promises = readme.split_once("\n## Promises").expect("the README has promises").1;
    let promises = promises.split("\n## ").next().unwrap();
    // In the README names stand among other words; tests have longer names than all of those.
    let in_readme = quoted(promises).filter(|word| is_name(word) && word.matches('_').count() >= 3);
    let here = test_paragraphs(SEMANTICS).into_iter().flat_map(quoted);
    let named: BTreeSet<&str> = in_readme.chain(here).collect();
    assert!(named.len() > 30, "the names were not found: {named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(missing.is_empty(), "no function is called {missing:?}");
}

#[test]
fn every_subject_of_the_page_names_its_tests() {
    let subjects: Vec<_> = SEMANTICS.split("\n# ").skip(1).collect();
    assert!(subjects.len() >= 10);
    for subject in subjects {
        assert_eq!(test_paragraphs(subject).len(), 1, "{}", subject.lines().next().unwrap());
    }
}

/// The cells of the rows of the table under a heading, without the head.
fn table(heading: &str) -> Vec<Vec<&str>> {
    let section = SEMANTICS.split("\n# ").find(|section| section.starts_with(heading)).expect(heading);
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn the_table_of_counters_is_the_counters() {
    let listed: Vec<_> = table("Counters").into_iter().map(|row| row[0].trim_matches('`')).collect();
    let labelled = catga::ShardStats::default().labelled();
    let labels: Vec<_> = labelled.iter().map(|(label, _)| *label).collect();
    assert_eq!(listed, labels, "the page, and then the code");
}

#[test]
fn the_bounds_on_the_page_are_those_of_the_code() {
    let bounds = table("Bounds");
    let default_of = |bound: &str| {
        let row = bounds.iter().find(|row| row[0].starts_with(bound)).expect(bound);
        let (number, unit) = row[1].split_once(' ').unwrap_or((row[1], ""));
        let number: f64 = number.replace(',', "").parse().unwrap();
        let unit = 1 << (10 * ["", "KiB", "MiB"].iter().position(|known| *known == unit).expect(unit));
        (number * f64::from(unit)) as usize
    };
    for (bound, value) in [
        ("shards of an engine", limits::SHARDS_MAX),
        ("calls in flight", limits::CALLS_MAX as usize),
        ("requests to one", limits::REQUEST_RING_BYTES),
        ("answers owed", limits::REPLY_RING_BYTES),
        ("all rings", limits::RINGS_BYTES_PER_SHARD),
        ("calls from foreign", limits::INBOX_CALLS),
        ("messages a shard", limits::LOCAL_QUEUE_MESSAGES),
        ("events of one", limits::OUTBOX_EVENTS),
        ("async handlers", limits::TASKS_PER_ROUTE),
        ("frames that a thread", limits::POOLED_FRAMES),
        ("a frame, over a lane", limits::LANE_FRAME_BYTES_MAX as usize),
        ("lanes of a shard", limits::LANES_MAX),
        ("connections of a shard", limits::CONNECTIONS_MAX),
        ("unanswered calls", limits::LANE_CALLS_MAX as usize),
        ("nodes that a node", limits::NODES_MAX),
    ] {
        assert_eq!(default_of(bound), value, "{bound}");
    }
}
