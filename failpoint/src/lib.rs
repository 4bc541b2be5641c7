//! Places at which a test ends or pauses a process. Without the feature `on`, which nothing that ships has, they are nothing.
//!
//! The file that `DURABLE_FAILPOINT` names says `<KILL or STOP> <n> <place>`: the process that comes to this place for
//! the n-th time renames the file to `<file>.<pid>`, so that no other does the same, and sends itself the signal.

/// This process is at this place now.
#[cfg(not(feature = "on"))]
#[inline]
pub const fn reach(_place: &str) {}

#[cfg(feature = "on")]
pub use on::reach;

#[cfg(feature = "on")]
mod on {
    use std::{
        env, fs,
        path::PathBuf,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    static FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os("DURABLE_FAILPOINT").map(PathBuf::from));
    static REACHED: AtomicU64 = AtomicU64::new(0);

    /// This process is at this place now.
    pub fn reach(place: &str) {
        let Some(file) = FILE.as_ref() else { return };
        let Some(order) = fs::read_to_string(file).ok().and_then(|text| Order::parse(&text)) else { return };
        if order.place != place || REACHED.fetch_add(1, Ordering::Relaxed) + 1 < order.times {
            return;
        }
        let me = getpid();
        let taken = file.with_added_extension(me.as_raw_nonzero().to_string());
        if fs::rename(file, taken).is_ok() {
            // A signal to oneself does not fail.
            let _ = kill_process(me, order.signal);
        }
    }

    struct Order {
        place: String,
        signal: Signal,
        times: u64,
    }

    impl Order {
        fn parse(text: &str) -> Option<Self> {
            let mut words = text.splitn(3, ' ');
            let signal = match words.next()? {
                "KILL" => Signal::KILL,
                "STOP" => Signal::STOP,
                _ => return None,
            };
            let times = words.next()?.parse().ok()?;
            Some(Self { place: words.next()?.to_owned(), signal, times })
        }
    }
}
