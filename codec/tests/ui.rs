//! Types that may not travel do not compile, and the compiler's message says which field it is and what to
//! write instead.
//!
//! After a change of wording run with `TRYBUILD=overwrite` and read the difference.

#[test]
fn what_may_not_cross_nodes_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
