//! Reads and writes of a connection, with their budgets and timeouts.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::idle::IdlePhase;
use super::{LINGER, READ_BYTES, RETAINED_INPUT_BYTES, RespConnection, SCRATCH};
use crate::api::resp::BODY_BUDGET_EXCEEDED;
use crate::api::resp::command_batch::ConnectionEnd;
use crate::api::resp::transaction::merge_permits;
use crate::metrics::RespCloseReason;

impl RespConnection<'_> {
    /// Writes all replies. A client that accepts nothing for the length of a request timeout is dropped.
    pub(super) async fn write(&mut self) -> Result<(), ConnectionEnd> {
        self.pipeline_depth += std::mem::take(&mut self.pending_commands);
        self.has_yielded = false;
        let is_empty = self.replies.bytes().is_empty();
        let written = self.write_all().await;
        self.replies.clear();
        match written {
            Ok(()) if is_empty => {}
            Ok(()) => self.forget_delivered(),
            Err(_) => self.roll_back_undelivered(),
        }
        written
    }

    async fn write_all(&mut self) -> Result<(), ConnectionEnd> {
        let mut written = 0;
        while written < self.replies.bytes().len() {
            match self.stream.try_write(&self.replies.bytes()[written..]) {
                Ok(0) => return Err(ConnectionEnd::ClientGone),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    match timeout(self.shared.bounds.timeout, self.stream.writable()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Err(ConnectionEnd::ClientGone),
                        Err(_elapsed) => return Err(ConnectionEnd::Closed(RespCloseReason::SlowReader)),
                    }
                }
                Err(_) => return Err(ConnectionEnd::ClientGone),
            }
        }
        Ok(())
    }

    /// Waits for more input, or for the end of the connection.
    pub(super) async fn read(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Result<(), ConnectionEnd> {
        self.input.drain(..std::mem::take(&mut self.consumed));
        self.exec_end = 0;
        let is_mid_command = !self.input.is_empty();
        if !is_mid_command {
            self.input.shrink_to(RETAINED_INPUT_BYTES);
            self.permit = None;
        }
        self.reserve_input()?;
        let idle_limit = self.shared.limits.idle;
        let phase = if self.session.transaction.is_none() { IdlePhase::Commands } else { IdlePhase::Transaction };
        let Self { stream, input, command_deadline, shared, idle, .. } = self;
        let more = poll_fn(|context| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut into = ReadBuf::new(scratch);
                // Not `try_read`: this records that a short read has emptied the socket, and saves the next attempt.
                let polled = Pin::new(&mut *stream).poll_read(context, &mut into);
                polled.map(|read| match read {
                    Ok(()) if !into.filled().is_empty() => {
                        input.extend_from_slice(into.filled());
                        Ok(())
                    }
                    _ => Err(ConnectionEnd::ClientGone),
                })
            })
        });
        let (mut more, mut stop) = (pin!(more), stop);
        let mut deadline =
            is_mid_command.then(|| command_deadline.get_or_insert_with(|| Box::pin(sleep(shared.bounds.timeout))));
        let mut ended = poll_fn(|context| match &mut deadline {
            Some(deadline) => {
                deadline.as_mut().poll(context).map(|()| ConnectionEnd::Closed(RespCloseReason::SlowWriter))
            }
            // Between two commands the service may stop, or the idle timeout elapse.
            None => match (stop.as_mut().poll(context), idle_limit) {
                (Poll::Ready(()), _) => Poll::Ready(ConnectionEnd::ClientGone),
                (Poll::Pending, Some(limit)) => {
                    idle.poll(limit, phase, context).map(|()| ConnectionEnd::Closed(RespCloseReason::Idle))
                }
                (Poll::Pending, None) => Poll::Pending,
            },
        });
        // Reasons to end are checked only when there is nothing to read.
        let read = poll_fn(|context| match more.as_mut().poll(context) {
            Poll::Pending => Pin::new(&mut ended).poll(context).map(Err),
            ready => ready,
        })
        .await;
        if read.is_ok() {
            self.idle.record_activity();
            self.written.clear();
        }
        if let Err(ConnectionEnd::Closed(RespCloseReason::SlowWriter)) = read {
            self.replies.error("ERR", "Protocol error: the command was not complete in time");
        }
        read
    }

    /// Takes a permit for the memory that a long command needs.
    fn reserve_input(&mut self) -> Result<(), ConnectionEnd> {
        if self.input.len() <= READ_BYTES {
            return Ok(());
        }
        self.input.reserve(READ_BYTES);
        let permit_kib = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        match self.shared.try_reserve((self.input.capacity() >> 10).saturating_sub(permit_kib)) {
            Some(more) => {
                merge_permits(&mut self.permit, more);
                Ok(())
            }
            None => {
                self.replies.error("OVERLOADED", BODY_BUDGET_EXCEEDED);
                Err(ConnectionEnd::Closed(RespCloseReason::NoRoom))
            }
        }
    }

    /// Lets the client read the last reply: a connection that is closed with unread input is reset, and the reply lost.
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
