//! What a room is, and what may be done to it. No I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

const MESSAGES_KEPT: usize = 50;
const MEMBERS_KEPT: usize = 50;
const MAX_TEXT_CHARS: usize = 1000;
const MAX_NAME_CHARS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Given by the client, so that a message that is sent twice is taken once.
    pub id: String,
    pub from: String,
    pub text: String,
    /// How many messages there were with this one.
    pub count: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Chat {
    /// Messages ever posted.
    pub count: u64,
    /// The last of them.
    pub messages: VecDeque<Message>,
    /// When each was last seen, in milliseconds since 1970.
    pub members: BTreeMap<String, u64>,
}

/// A message to be posted.
#[derive(Debug, Deserialize)]
pub struct Post {
    pub from: String,
    pub text: String,
    pub id: Option<String>,
}

/// Who joins or leaves.
#[derive(Debug, Deserialize)]
pub struct Who {
    pub name: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Posted {
    Now(Message),
    Before(Message),
}

impl Chat {
    pub fn post(&mut self, post: Post, now: u64) -> Result<Posted, String> {
        let from = name("from", &post.from)?;
        let text = post.text.trim();
        if text.is_empty() || text.chars().count() > MAX_TEXT_CHARS {
            return Err(format!("text must have 1 to {MAX_TEXT_CHARS} characters"));
        }
        if let Some(id) = &post.id {
            name("id", id)?;
            if let Some(message) = self.messages.iter().find(|message| message.id == *id) {
                return Ok(Posted::Before(message.clone()));
            }
        }
        self.count += 1;
        let count = self.count;
        let id = post.id.unwrap_or_else(|| format!("#{count}"));
        let message = Message { id, from: from.clone(), text: text.to_owned(), count };
        if self.messages.len() == MESSAGES_KEPT {
            self.messages.pop_front();
        }
        self.messages.push_back(message.clone());
        self.see(from, now);
        Ok(Posted::Now(message))
    }

    pub fn join(&mut self, who: &Who, now: u64) -> Result<(), String> {
        self.see(name("name", &who.name)?, now);
        Ok(())
    }

    /// Whether they were here.
    pub fn leave(&mut self, who: &Who) -> Result<bool, String> {
        Ok(self.members.remove(&name("name", &who.name)?).is_some())
    }

    fn see(&mut self, name: String, now: u64) {
        self.members.insert(name, now);
        if self.members.len() > MEMBERS_KEPT
            && let Some(gone) = self.members.iter().min_by_key(|(_, seen)| **seen).map(|(name, _)| name.clone())
        {
            self.members.remove(&gone);
        }
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn name(field: &str, value: &str) -> Result<String, String> {
    let value = value.trim();
    if value.is_empty() || value.chars().count() > MAX_NAME_CHARS || value.chars().any(char::is_control) {
        return Err(format!("{field} must have 1 to {MAX_NAME_CHARS} printable characters"));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(from: &str, text: &str, id: Option<&str>) -> Post {
        Post { from: from.into(), text: text.into(), id: id.map(Into::into) }
    }

    #[test]
    fn a_message_that_is_sent_twice_is_taken_once() {
        let mut chat = Chat::default();
        let Ok(Posted::Now(first)) = chat.post(post("ann", "hi", Some("1")), 0) else { panic!() };
        assert_eq!(chat.post(post("ann", "hi", Some("1")), 0), Ok(Posted::Before(first)));
        assert_eq!(chat.count, 1);
        assert!(matches!(chat.post(post("ann", "hi", None), 0), Ok(Posted::Now(Message { count: 2, .. }))));
    }

    #[test]
    fn a_room_stays_small_but_counts_on() {
        let mut chat = Chat::default();
        for number in 0..120 {
            chat.post(post(&format!("member {number}"), "hi", None), number).unwrap();
        }
        assert_eq!((chat.count, chat.messages.len(), chat.members.len()), (120, MESSAGES_KEPT, MEMBERS_KEPT));
        assert_eq!(chat.messages[0].count, 71);
        assert!(!chat.members.contains_key("member 69") && chat.members.contains_key("member 70"));
    }

    #[test]
    fn input_is_bounded() {
        let mut chat = Chat::default();
        let long = "ä".repeat(1000);
        for (from, text, id, taken) in [
            ("ann", long.as_str(), None, true),
            ("ann", &format!("{long}ä"), None, false),
            ("ann", " ", None, false),
            (&long[..128], "hi", None, true),
            (&long[..130], "hi", None, false),
            ("a\nb", "hi", None, false),
            ("ann", "hi", Some(""), false),
        ] {
            assert_eq!(chat.post(post(from, text, id), 0).is_ok(), taken, "{from} {text} {id:?}");
        }
        assert_eq!(chat.count, 2);
    }

    #[test]
    fn members_come_and_go() {
        let mut chat = Chat::default();
        let ann = Who { name: " ann ".into() };
        chat.join(&ann, 7).unwrap();
        assert_eq!(chat.members["ann"], 7);
        assert_eq!((chat.leave(&ann), chat.leave(&ann)), (Ok(true), Ok(false)));
    }
}
