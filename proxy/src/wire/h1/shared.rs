//! What a served connection and the bodies that it gave out share, under one lock that is never held while anybody waits.
//!
//! Decides who may still reach the connection: only the exchange that is under way. Made by [`super::server`]; its bodies and
//! [`Exchange`](super::Exchange)s call it through [`Served`].

use std::io;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use http::{Response, StatusCode, Version};
use parking_lot::Mutex;

use super::buf::{Input, Output};
use super::coding::{BodyError, Decoder, Step};
use super::head::{Length, Limits};
use super::incoming::{Polled, Served};
use super::original::{Fields, OriginalHead, Told, write_status_line};
use super::upgrade::Upgraded;
use crate::io::Transport;

/// What a connection's server and the bodies it gave out share.
pub(super) struct Shared<I>(pub(super) Mutex<State<I>>);

pub(super) struct State<I> {
    /// `None` once the connection is over or no longer HTTP.
    pub(super) io: Option<I>,
    pub(super) input: Input,
    pub(super) limits: Limits,
    /// Counts exchanges, so that what is left of an old one cannot reach into a new one.
    pub(super) exchange: u64,
    pub(super) decoder: Decoder,
    /// The request's body broke off; nothing more can be read.
    pub(super) failed: bool,
    /// The final response has begun, or nobody understands interim ones.
    pub(super) answered: bool,
    pub(super) continued: bool,
    pub(super) interim: Vec<u8>,
    pub(super) upgrade: Upgrade,
    pub(super) server: Option<Waker>,
}

pub(super) enum Upgrade {
    NotAsked,
    Asked(Option<Waker>),
    Ready(Upgraded),
    Over,
}

/// Read ahead while a response is being made; the client's next requests may wait in there.
const READ_AHEAD: usize = 16 * 1024;

// === impl State ===

impl<I: Transport> State<I> {
    /// The next part of the request's body.
    pub(super) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        if self.failed {
            return Poll::Ready(Polled::error(BodyError::Abandoned));
        }
        let polled =
            ready!(poll_part(&mut self.decoder, &mut self.input, self.io.as_mut(), &self.limits, cx));
        self.failed = matches!(polled.frame, Some(Err(_)));
        Poll::Ready(polled)
    }

    pub(super) fn take_interim(&mut self, out: &mut Output) {
        if !self.interim.is_empty() {
            out.small().append(&mut self.interim);
        }
    }

    /// Ready when the client has reset the connection. (Having ended its own side is its right.)
    pub(super) fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Self { io: Some(io), input, decoder, failed, .. } = self else { return Poll::Pending };
        if !decoder.is_done() || *failed {
            return Poll::Pending;
        }
        while !input.eof && input.buf.len() < READ_AHEAD {
            if let Err(error) = ready!(input.poll_fill(io, cx)) {
                return Poll::Ready(error);
            }
        }
        Poll::Pending
    }
}

/// The next part of a body, read from its connection.
pub(super) fn poll_part<I: Transport>(
    decoder: &mut Decoder,
    input: &mut Input,
    mut io: Option<&mut I>,
    limits: &Limits,
    cx: &mut Context<'_>,
) -> Poll<Polled> {
    loop {
        match decoder.decode(&mut input.buf, limits) {
            Ok(Step::Data(data)) => {
                decoder.settle(&mut input.buf);
                return Poll::Ready(Polled::data(data, decoder.is_done()));
            }
            Ok(Step::Trailers(trailers)) => return Poll::Ready(Polled::trailers(trailers)),
            Ok(Step::End) => return Poll::Ready(Polled::end()),
            Ok(Step::More) => {}
            Err(error) => return Poll::Ready(Polled::error(error)),
        }
        let Some(io) = &mut io else { return Poll::Ready(Polled::error(BodyError::Abandoned)) };
        match ready!(input.poll_fill(*io, cx)) {
            Ok(0) if decoder.ends_at_eof() => return Poll::Ready(Polled::end()),
            Ok(0) => return Poll::Ready(Polled::error(BodyError::Truncated)),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Polled::error(error)),
        }
    }
}

// === impl Shared ===

impl<I> Shared<I> {
    pub(super) fn new(io: I, initial: &[u8], limits: Limits) -> Self {
        Self(Mutex::new(State {
            io: Some(io),
            input: Input::new(initial),
            limits,
            exchange: 0,
            decoder: Decoder::new(Length::Exact(0)),
            failed: false,
            answered: true,
            continued: false,
            interim: Vec::new(),
            upgrade: Upgrade::NotAsked,
            server: None,
        }))
    }

    /// Hands the connection to who asked for it.
    pub(super) fn upgrade(&self)
    where
        I: Transport,
    {
        let mut state = self.0.lock();
        let State { io, input, upgrade, .. } = &mut *state;
        if let (Upgrade::Asked(waker), Some(io)) = (upgrade, io.take()) {
            let waker = waker.take();
            let read = std::mem::replace(&mut input.buf, BytesMut::new());
            state.upgrade = Upgrade::Ready(Upgraded::new(io, read));
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// The connection has ended.
    pub(super) fn over(&self) {
        let mut state = self.0.lock();
        let io = state.io.take();
        state.exchange += 1;
        state.server = None;
        state.upgrade.give_up();
        drop(state);
        drop(io);
    }
}

impl Upgrade {
    /// The connection stays HTTP, or is over.
    pub(super) fn give_up(&mut self) {
        if let Self::Asked(waker) = self {
            let waker = waker.take();
            *self = Self::Over;
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<I: Transport> Served for Shared<I> {
    fn poll_body(&self, exchange: u64, cx: &mut Context<'_>) -> Poll<Polled> {
        let mut state = self.0.lock();
        if state.exchange != exchange {
            return Poll::Ready(Polled::error(BodyError::Abandoned));
        }
        state.poll_part(cx)
    }

    fn interim(&self, exchange: u64, response: &Response<()>) -> bool {
        let mut state = self.0.lock();
        let (status, headers) = (response.status(), response.headers());
        let original = response.extensions().get::<OriginalHead>();
        let allowed = status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS;
        if state.exchange != exchange || state.answered || !allowed {
            return false;
        }
        state.continued |= status == StatusCode::CONTINUE;
        write_status_line(&mut state.interim, status, Version::HTTP_11, original);
        let fields = Fields { original, headers, told: Told::Nothing, connection: None };
        fields.write(&mut state.interim);
        let server = state.server.clone();
        drop(state);
        if let Some(server) = server {
            server.wake();
        }
        true
    }

    fn ask_upgrade(&self, exchange: u64) {
        let mut state = self.0.lock();
        if state.exchange == exchange && matches!(state.upgrade, Upgrade::NotAsked | Upgrade::Over) {
            state.upgrade = Upgrade::Asked(None);
        }
    }

    fn poll_upgrade(&self, exchange: u64, cx: &mut Context<'_>) -> Poll<Option<Upgraded>> {
        let mut state = self.0.lock();
        match &mut state.upgrade {
            Upgrade::Asked(waker) => {
                *waker = Some(cx.waker().clone());
                if state.exchange == exchange { Poll::Pending } else { Poll::Ready(None) }
            }
            Upgrade::Ready(_) => match std::mem::replace(&mut state.upgrade, Upgrade::Over) {
                Upgrade::Ready(upgraded) => Poll::Ready(Some(upgraded)),
                _ => Poll::Ready(None),
            },
            Upgrade::NotAsked | Upgrade::Over => Poll::Ready(None),
        }
    }
}
