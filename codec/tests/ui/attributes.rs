extern crate catga_codec as catga;

#[catga::message]
struct Conditional {
    #[cfg(test)]
    extra: u32,
}

#[catga::message]
struct OtherForm {
    #[rkyv(with = catga::rkyv::with::Skip)]
    extra: u32,
}

#[catga::message]
#[rkyv(archived = Elsewhere)]
struct OtherName;

#[catga::message]
enum Tag {
    A,
}

fn main() {}
