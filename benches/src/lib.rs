//! Criterion suites, one for each layer: see `benches/`.
