use catga::prelude::*;

struct Plain {
    article: u64,
}

struct Desk;

impl Desk {
    // No attribute: not a message.
    fn plain(&mut self, _: &Plain, _: &Context) -> Result<(), Fault> {
        Ok(())
    }

    // The message itself, not its archive.
    fn owned(&mut self, _: &Quote, _: &Context) -> Result<(), Fault> {
        Ok(())
    }

    // A message that is only part of others.
    fn part(&mut self, _: &Archived<Part>, _: &Context) -> Result<(), Fault> {
        Ok(())
    }
}

#[request]
struct Quote {
    article: u64,
}

#[message]
struct Part {
    article: u64,
}

fn main() {
    let builder = Engine::builder();
    let builder = builder.service(|_| Desk, |routes| routes.request(Desk::plain));
    let builder = builder.service(|_| Desk, |routes| routes.request(Desk::owned));
    let _ = builder.service(|_| Desk, |routes| routes.request(Desk::part));
}
