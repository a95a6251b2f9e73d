extern crate catga_codec as catga;

#[catga::request(replay = u32)]
struct UnknownOption;

#[catga::event(reply = u32)]
struct OptionOfAnother;

#[catga::message(key = id)]
struct KeyOfPart {
    id: u32,
}

#[catga::message(version = 0)]
struct VersionZero;

#[catga::message(name = "two words")]
struct Blank;

#[catga::message(name = "")]
struct NoName;

#[catga::message(name = "a", name = "b")]
struct Twice;

fn main() {}
