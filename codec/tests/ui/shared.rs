extern crate catga_codec as catga;

#[catga::message]
struct Counted {
    local: std::rc::Rc<u32>,
}

#[catga::message]
struct Shared {
    shared: Vec<std::sync::Arc<String>>,
}

fn main() {}
