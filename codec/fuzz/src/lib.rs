//! What the fuzz targets call; `entry` is shared with the ordinary tests of the codec.

extern crate catga_codec as catga;

pub mod entry;
