//! Requests, and messages of sockets: one after the other, and only while the server serves.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};

use super::{Cell, Surroundings};
use crate::{
    answer::{Refusal, not_here},
    headers::NOT_HERE,
    server::Context,
    socket::{Accepted, Message, Offer, Socket},
    stream::Said,
};

impl Cell {
    /// Has the server handle a user's request, if it serves at that epoch right now.
    pub(crate) async fn handle(
        &self,
        mut request: Request<Bytes>,
        epoch: u64,
        around: &Surroundings,
    ) -> (Response<Said>, Option<Accepted>) {
        let whole = |answer: Response<Bytes>| (answer.map(|body| Said::new(body, None)), None);
        let (answer, mut context, generation) = {
            let mut slot = self.slot.lock().await;
            let Some(name) = self.serving(epoch, &around.lease) else { return whole(not_here()) };
            let Some(server) = slot.as_deref_mut() else { return whole(not_here()) };
            let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
            let offer = Offer::read(&mut request);
            let mut context = Context::new(name, epoch, changes, offer, Arc::clone(&around.agent));
            // A handler that panics may have changed anything.
            let mut change = Change { cell: self, counts: true };
            let mut answer = server.handle(request, &mut context).await;
            change.counts = context.is_changed();
            answer.headers_mut().remove(NOT_HERE);
            (answer, context, self.generation())
        };
        match settled(&context, generation, around).await {
            Err(refusal) => whole(refusal.into()),
            Ok(()) => match context.take_accepted() {
                Some(accepted) => (accepted.answer(), Some(accepted)),
                None => (answer.map(|body| Said::new(body, context.take_rest())), None),
            },
        }
    }

    /// Has the server handle a message of a socket of that epoch. While the server is frozen the message waits: if it is
    /// thawed, it is handled, and if it has gone, never.
    pub(crate) async fn message(
        &self,
        socket: &Socket,
        message: Message,
        epoch: u64,
        around: &Surroundings,
    ) -> Result<Option<Message>, Refusal> {
        let (reply, context, generation) = loop {
            let turned = self.turned.notified();
            let mut slot = self.slot.lock().await;
            if let Some(name) = self.serving(epoch, &around.lease)
                && let Some(server) = slot.as_deref_mut()
            {
                let mut context = Context::new(name, epoch, true, None, Arc::clone(&around.agent));
                let mut change = Change { cell: self, counts: true };
                let reply = server.message(socket, message, &mut context).await;
                change.counts = context.is_changed();
                break (reply, context, self.generation());
            }
            self.term_of(epoch)?;
            drop(slot);
            turned.await;
        };
        settled(&context, generation, around).await?;
        Ok(reply)
    }

    /// Returns when nothing of that epoch is here any more.
    pub(crate) async fn over(&self, epoch: u64) {
        loop {
            let turned = self.turned.notified();
            let slot = self.slot.lock().await;
            if self.term_of(epoch).is_err() {
                return;
            }
            drop(slot);
            turned.await;
        }
    }
}

/// Counts a change when the handler is over, however that comes about.
struct Change<'a> {
    cell: &'a Cell,
    counts: bool,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.counts {
            let mut meta = self.cell.meta();
            meta.revision += 1;
            meta.written = false;
        }
    }
}

/// Whether what was handled may be answered.
async fn settled(context: &Context, generation: u64, around: &Surroundings) -> Result<(), Refusal> {
    let refused = |sentence: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence);
    context.settle().await.map_err(|error| refused(format!("not stored durably: {error}")))?;
    // It slept over the end, or the handler took so long: another pod may have answered otherwise by now.
    if around.lease.allows(generation) {
        Ok(())
    } else {
        Err(refused("the lease ended before this was answered".into()))
    }
}
