//! What would break a promise does not compile, and the compiler's message says what to write instead: handlers with
//! the wrong types, events that are sent and requests that are published, and everything that belongs to one shard or
//! to one call and would leave it.
//!
//! What may not be in a message, or be its key, is in the codec's own `tests/ui`.
//!
//! After a change of wording run with `TRYBUILD=overwrite` and read the difference.

#[test]
fn what_would_break_a_promise_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
