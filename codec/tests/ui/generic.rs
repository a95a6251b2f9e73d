extern crate catga_codec as catga;

#[catga::message]
struct Page<T> {
    rows: Vec<T>,
}

#[catga::request]
union Either {
    left: u32,
    right: f32,
}

#[catga::message]
enum Nothing {}

fn main() {}
