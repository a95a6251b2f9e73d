extern crate catga_codec as catga;

#[catga::message]
struct Named {
    name: Option<&'static str>,
}

#[catga::message]
struct Pair {
    both: Vec<(u32, u32)>,
}

#[catga::message]
enum Any {
    This(Box<dyn std::fmt::Debug>),
}

fn main() {}
