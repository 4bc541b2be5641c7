use std::sync::Mutex;

use serde_json::json;
use tokio::time::sleep;

use super::*;

/// Records what it was asked to write, takes `takes` for each, and fails the first `fails`.
struct Fake {
    log: Mutex<Vec<(String, What)>>,
    busy: Mutex<HashSet<Key>>,
    takes: Duration,
    fails: Mutex<usize>,
}

#[async_trait]
impl Sink for Fake {
    async fn write(&self, _: Kind, key: &Key, what: &What) -> Outcome {
        assert!(self.busy.lock().unwrap().insert(key.clone()), "two writes of {key} at once");
        sleep(self.takes).await;
        self.busy.lock().unwrap().remove(key);
        let mut fails = self.fails.lock().unwrap();
        if *fails > 0 {
            *fails -= 1;
            return Outcome::Again;
        }
        self.log.lock().unwrap().push((key.name.clone(), what.clone()));
        Outcome::Done
    }
}

fn fake(takes: u64, fails: usize) -> (Arc<Fake>, mpsc::UnboundedSender<Write>, mpsc::Receiver<Event>) {
    let sink = Arc::new(Fake {
        log: Mutex::default(),
        busy: Mutex::default(),
        takes: Duration::from_millis(takes),
        fails: Mutex::new(fails),
    });
    let (writes, queue) = mpsc::unbounded_channel();
    let (events, recorded) = mpsc::channel(16);
    tokio::spawn(run(sink.clone(), queue, events));
    (sink, writes, recorded)
}

fn status(kind: Kind, name: &str, n: u32) -> Write {
    Write { kind, key: Key::new("ns", name), what: What::Status(json!(n).into()) }
}

fn names(sink: &Fake) -> Vec<String> {
    sink.log.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_word_is_written() {
    let (sink, writes, _recorded) = fake(100, 0);
    for n in 0..50 {
        writes.send(status(Kind::Server, "a", n)).unwrap();
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_secs(1)).await;
    let log = sink.log.lock().unwrap().clone();
    assert_eq!(log.len(), 2, "one under way and one that replaced all others: {log:?}");
    assert_eq!(log[1].1, What::Status(json!(49).into()));
}

#[tokio::test(start_paused = true)]
async fn two_hundred_a_second_and_people_first() {
    let (sink, writes, _recorded) = fake(0, 0);
    for n in 0..1_000 {
        writes.send(status(Kind::Server, &format!("s{n}"), n)).unwrap();
    }
    sleep(Duration::from_millis(1_005)).await;
    let written = names(&sink).len();
    assert!((190..=204).contains(&written), "{written}");
    writes.send(status(Kind::Handoff, "h", 1)).unwrap();
    sleep(Duration::from_millis(25)).await;
    assert!(names(&sink).contains(&"h".into()));
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_tried_again_unless_there_is_newer_word() {
    let (sink, writes, mut recorded) = fake(50, 1);
    writes.send(status(Kind::Handoff, "h", 1)).unwrap();
    sleep(Duration::from_millis(20)).await;
    writes.send(status(Kind::Handoff, "h", 2)).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(sink.log.lock().unwrap().clone(), [("h".to_owned(), What::Status(json!(2).into()))]);
    assert!(matches!(recorded.try_recv(), Ok(Event::Recorded(_, body)) if *body == json!(2)));
}

#[tokio::test(start_paused = true)]
async fn an_object_is_made_before_its_status_is_written() {
    let (sink, writes, _recorded) = fake(0, 1);
    writes.send(status(Kind::Handoff, "h", 1)).unwrap();
    writes.send(Write { what: What::Create(json!("new").into()), ..status(Kind::Handoff, "h", 1) }).unwrap();
    sleep(Duration::from_secs(3)).await;
    let log = sink.log.lock().unwrap().clone();
    assert!(matches!(log[..], [(_, What::Create(_)), (_, What::Status(_))]), "{log:?}");
}
