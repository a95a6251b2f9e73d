extern crate catga_codec as catga;

#[catga::message]
struct Position(#[was("zero")] u32);

#[catga::message]
enum InVariant {
    A(#[was("zero")] u32),
}

#[catga::message]
#[was("Former")]
struct WholeType {
    cents: u32,
}

#[catga::message]
struct Empty {
    #[was("")]
    cents: u32,
}

#[catga::message]
struct NoName {
    #[was("two words")]
    cents: u32,
}

#[catga::message]
struct Identical {
    #[was("cents")]
    cents: u32,
}

#[catga::message]
struct HasItNow {
    #[was("sku")]
    cents: u32,
    sku: u32,
}

#[catga::message]
struct BothHadIt {
    #[was("sku")]
    cents: u32,
    #[was("sku")]
    article: u32,
}

#[catga::message]
enum Variants {
    #[was("B")]
    A,
    B,
}

#[catga::message]
struct NoText {
    #[was = "amount"]
    cents: u32,
}

#[catga::message]
struct Twice {
    #[was("amount")]
    #[was("price")]
    cents: u32,
}

fn main() {}
