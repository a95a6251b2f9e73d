//! Keeps what is logged, as text, for tests that read it.

use std::sync::{Arc, Mutex};

/// A subscriber; its clones keep one list of lines.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// The first line for which this holds.
    pub(crate) fn find(&self, holds: impl Fn(&str) -> bool) -> Option<String> {
        self.0.lock().unwrap().iter().find(|line| holds(line)).cloned()
    }

    /// For how many lines this holds.
    pub(crate) fn count(&self, holds: impl Fn(&str) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|line| holds(line)).count()
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            line.push_str(&format!("{field}={value:?} "));
        });
        self.0.lock().unwrap().push(line);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
