extern crate catga_codec as catga;

#[catga::message]
struct Node {
    children: Vec<Node>,
}

#[catga::message]
enum List {
    End,
    More(Option<Box<Self>>),
}

fn main() {}
