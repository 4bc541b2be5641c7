use axum::http::Uri;

use super::*;

fn question(query: &str) -> Result<Question, Unanswerable> {
    let uri: Uri = format!("http://operator/plan?{query}").parse().unwrap();
    let words = Query::<Words>::try_from_uri(&uri).map_err(|error| Unanswerable::Malformed(error.body_text()))?;
    words.0.question()
}

#[test]
fn one_thing_is_asked_of_one_pool() {
    let pool = Key::new("ns", "rooms");
    let servers = vec!["a".to_owned(), "b".to_owned()];
    let pod = |name: &str| name.to_owned();
    for (query, what) in [
        ("drain=p", What::Drain(pod("p"))),
        ("node=n", What::Node(pod("n"))),
        ("rollout", What::Rollout),
        ("move=a,b&to=best", What::Move(servers.clone(), To::Best)),
        ("move=a%2Cb,&to=p", What::Move(servers.clone(), To::Pod(pod("p")))),
    ] {
        assert_eq!(question(&format!("pool=ns/rooms&{query}")), Ok(Question { pool: pool.clone(), what }), "{query}");
    }
}

#[test]
fn what_cannot_be_understood_is_refused_with_what_to_ask() {
    let long = "x".repeat(MAX_NAME + 1);
    let many = vec!["a"; MAX_SERVERS + 1].join(",");
    for query in [
        "",
        "drain=p",
        "pool=rooms&drain=p",
        "pool=ns/rooms",
        "pool=ns/rooms&drain=p&rollout",
        "pool=ns/rooms&move=a",
        "pool=ns/rooms&rollout&to=p",
        "pool=ns/rooms&move=,&to=p",
        "pool=ns/rooms&delete=p",
        &format!("pool=ns/rooms&drain={long}"),
        &format!("pool=ns/rooms&move={many}&to=best"),
    ] {
        let why = question(query).unwrap_err();
        assert!(why.to_string().contains("ask /plan?pool="), "{why}");
        assert_eq!(why.into_response().status(), StatusCode::BAD_REQUEST, "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_leads_answers_and_one_question_after_another() {
    let (leads, leadership) = watch::channel(Leadership::Other(None));
    let (asking, mut incoming) = new(leadership);
    let ask = || Question { pool: Key::new("ns", "rooms"), what: What::Rollout };
    assert_eq!(asking.ask(ask()).await, Err(Unanswerable::NotLeading));
    assert_eq!(Unanswerable::NotLeading.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
    leads.send_replace(Leadership::Ours);
    let first = tokio::spawn({
        let asking = asking.clone();
        async move { asking.ask(ask()).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(asking.ask(ask()).await, Err(Unanswerable::Busy), "the world has not taken the first one yet");
    let taken = incoming.recv().await.unwrap();
    taken.answer.send(Ok(Foretold::default())).unwrap();
    assert_eq!(first.await.unwrap(), Ok(Foretold::default()));
    assert_eq!(asking.ask(ask()).await, Err(Unanswerable::Busy), "nobody answers");
}
