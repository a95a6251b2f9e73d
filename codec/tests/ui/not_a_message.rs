extern crate catga_codec as catga;

use catga::{Event, Message, Request};

#[catga::message]
struct Part;

fn send<R: Request>() {}
fn publish<E: Event>() {}
fn any<M: Message>() {}

fn main() {
    send::<Part>();
    publish::<Part>();
    any::<u32>();
}
