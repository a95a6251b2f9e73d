extern crate catga_codec as catga;

type Four<T> = Option<Option<Option<Option<T>>>>;

#[catga::message]
struct Deep {
    value: Four<Four<Four<Four<u8>>>>,
}

fn main() {}
