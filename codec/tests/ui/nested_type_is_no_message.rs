extern crate catga_codec as catga;

// Archived by rkyv alone: no stable name, no fingerprint.
#[derive(catga::rkyv::Archive, catga::rkyv::Serialize, catga::rkyv::Deserialize)]
#[rkyv(crate = catga::rkyv)]
struct Line {
    sku: u32,
}

#[catga::request]
struct PlaceOrder {
    lines: Vec<Line>,
}

fn main() {}
