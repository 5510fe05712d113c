//! What a connection reads and writes, with how much room and patience.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::idle::IdlePhase;
use super::{Connection, KEPT_BYTES, LINGER, READ_BYTES, SCRATCH};
use crate::api::resp::NO_ROOM;
use crate::api::resp::run::End;
use crate::api::resp::transaction::merge;
use crate::metrics::RespEnd;

impl Connection<'_> {
    /// Writes all answers. A client that takes nothing of them for as long as a request may last is dropped.
    pub(super) async fn write(&mut self) -> Result<(), End> {
        self.depth += std::mem::take(&mut self.round);
        self.went_last = false;
        let nothing = self.answers.bytes().is_empty();
        let written = self.write_all().await;
        self.answers.clear();
        match written {
            Ok(()) if nothing => {}
            Ok(()) => self.told(),
            Err(_) => self.roll_back_undelivered(),
        }
        written
    }

    async fn write_all(&mut self) -> Result<(), End> {
        let mut written = 0;
        while written < self.answers.bytes().len() {
            match self.stream.try_write(&self.answers.bytes()[written..]) {
                Ok(0) => return Err(End::Gone),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    match timeout(self.shared.bounds.timeout, self.stream.writable()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Err(End::Gone),
                        Err(_elapsed) => return Err(End::By(RespEnd::SlowReader)),
                    }
                }
                Err(_) => return Err(End::Gone),
            }
        }
        Ok(())
    }

    /// Waits for more input.
    pub(super) async fn read(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Result<(), End> {
        self.input.drain(..std::mem::take(&mut self.taken));
        self.exec_end = 0;
        let within = !self.input.is_empty();
        if !within {
            self.input.shrink_to(KEPT_BYTES);
            self.room = None;
        }
        self.make_room()?;
        let idle_limit = self.shared.limits.idle;
        let phase = if self.session.transaction.is_none() { IdlePhase::Commands } else { IdlePhase::Transaction };
        let Self { stream, input, patience, shared, idle, .. } = self;
        let more = poll_fn(|context| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut into = ReadBuf::new(scratch);
                // Not `try_read`: this notes that a short read has emptied the socket, and spares the next attempt.
                let polled = Pin::new(&mut *stream).poll_read(context, &mut into);
                polled.map(|read| match read {
                    Ok(()) if !into.filled().is_empty() => {
                        input.extend_from_slice(into.filled());
                        Ok(())
                    }
                    _ => Err(End::Gone),
                })
            })
        });
        let (mut more, mut stop) = (pin!(more), stop);
        let patience = within.then(|| patience.get_or_insert_with(|| Box::pin(sleep(shared.bounds.timeout))));
        let mut patience = patience;
        let mut ended = poll_fn(|context| match &mut patience {
            Some(patience) => patience.as_mut().poll(context).map(|()| End::By(RespEnd::SlowWriter)),
            // Between two commands the service may stop, or nothing come for too long.
            None => match (stop.as_mut().poll(context), idle_limit) {
                (Poll::Ready(()), _) => Poll::Ready(End::Gone),
                (Poll::Pending, Some(limit)) => idle.poll(limit, phase, context).map(|()| End::By(RespEnd::Idle)),
                (Poll::Pending, None) => Poll::Pending,
            },
        });
        // What would end it is looked at only when there is nothing to read.
        let read = poll_fn(|context| match more.as_mut().poll(context) {
            Poll::Pending => Pin::new(&mut ended).poll(context).map(Err),
            ready => ready,
        })
        .await;
        if read.is_ok() {
            self.idle.note_use();
            self.written.clear();
        }
        if let Err(End::By(RespEnd::SlowWriter)) = read {
            self.answers.error("ERR", "Protocol error: the command did not come to its end in time");
        }
        read
    }

    /// Asks for room for what a long command needs beyond a usual one.
    fn make_room(&mut self) -> Result<(), End> {
        if self.input.len() <= READ_BYTES {
            return Ok(());
        }
        self.input.reserve(READ_BYTES);
        let has = self.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let needs = (self.input.capacity() >> 10).saturating_sub(has);
        match self.shared.room(needs) {
            Some(more) => {
                merge(&mut self.room, more);
                Ok(())
            }
            None => {
                self.answers.error("OVERLOADED", NO_ROOM);
                Err(End::By(RespEnd::NoRoom))
            }
        }
    }

    /// Lets the client read the last answer: a connection closed over unread input is reset, and the answer lost.
    pub(super) async fn linger(&mut self) {
        let stream = &mut self.stream;
        let _ = timeout(LINGER, async {
            stream.shutdown().await?;
            loop {
                let read = poll_fn(|context| {
                    SCRATCH.with_borrow_mut(|scratch| {
                        let mut into = ReadBuf::new(scratch);
                        Pin::new(&mut *stream).poll_read(context, &mut into).map_ok(|()| into.filled().len())
                    })
                });
                if read.await? == 0 {
                    return std::io::Result::Ok(());
                }
            }
        })
        .await;
    }
}
