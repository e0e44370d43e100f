//! `POST /webhooks/stripe`: verify the signature, queue a hint, answer.
//!
//! **Invariant:** no Stripe call and no table, so that the answer is quick and depends on one queue only. A hint is durable
//! before Stripe hears 200; what a hint means is `sync`'s business.

use lambda_http::{Body, Request, Response};
use tokentill::{
    config::StripeMode,
    domain::{
        envelope,
        hint::{Relevance, relevance},
        signature::{self, WebhookSecrets},
    },
    log::Line,
    ports::{Clock, Hints, Secrets},
};

/// A longer body is refused unread. Stripe's own events stay far below.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct Webhook<S, H, C> {
    /// The endpoint's signing secrets.
    pub secrets: S,
    /// Where hints go.
    pub hints: H,
    /// The clock signatures are checked against.
    pub clock: C,
    /// The mode events must come from.
    pub mode: StripeMode,
}

/// What became of a request: the rows of the contract's table (3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Queued,
    /// Queued, but it names nothing that could be looked at.
    QueuedInVain,
    Irrelevant,
    OtherMode,
    BadSignature,
    BadBody,
    TooLarge,
    NotReady,
}

impl Answer {
    fn status(self) -> u16 {
        match self {
            Self::Queued | Self::QueuedInVain | Self::Irrelevant | Self::OtherMode => 200,
            Self::BadSignature | Self::BadBody => 400,
            Self::TooLarge => 413,
            Self::NotReady => 500,
        }
    }

    fn counted_in(self, line: Line) -> Line {
        match self {
            Self::Queued => line.count("WebhookAccepted", 1),
            Self::Irrelevant => line.count("WebhookIgnored", 1),
            // Somebody has to look: an endpoint of the wrong mode, an event in a shape that we cannot use, or a function that cannot
            // do its work.
            Self::OtherMode | Self::QueuedInVain | Self::NotReady => line.count("NeedsAttention", 1),
            Self::BadSignature | Self::BadBody | Self::TooLarge => line.count("WebhookRefused", 1),
        }
    }
}

impl<S: Secrets, H: Hints, C: Clock> Webhook<S, H, C> {
    /// Answers one request. It never fails: an error is an answer that makes Stripe send the event again.
    pub async fn handle(&self, request: Request) -> Response<Body> {
        let (answer, line, text) = self.receive(&request).await;
        answer.counted_in(line.field("status", answer.status())).write(&self.clock);
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = http::StatusCode::from_u16(answer.status()).unwrap_or_default();
        let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
        response
    }

    async fn receive(&self, request: &Request) -> (Answer, Line, String) {
        let line = |message| Line::new("webhook", message);
        // The bytes as Stripe signed them, whether or not the gateway delivered them base64-encoded.
        let body: &[u8] = match request.body() {
            Body::Text(text) => text.as_bytes(),
            Body::Binary(bytes) => bytes,
            _ => &[],
        };
        if body.len() > MAX_BODY_BYTES {
            return (Answer::TooLarge, line("body too large").field("bytes", body.len()), "the body is over 1 MiB".to_owned());
        }
        let now = self.clock.now();
        let secrets = match self.secrets.secret().await {
            Ok(secret) => WebhookSecrets::parse(secret.expose()).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let secrets = match secrets {
            Ok(secrets) => secrets,
            Err(error) => return (Answer::NotReady, line("no secret").field("error", error), "not ready".to_owned()),
        };
        let header = request.headers().get("stripe-signature").and_then(|value| value.to_str().ok());
        if let Err(refused) = signature::verify(header, body, &secrets, now) {
            return (Answer::BadSignature, line("bad signature").field("error", refused.to_string()), refused.to_string());
        }
        let hint = match envelope::read(body, now, self.mode.livemode()) {
            Ok(hint) => hint,
            Err(error) => return (Answer::BadBody, line("bad body").field("error", error.to_string()), error.to_string()),
        };
        let about = |message| line(message).field("event_id", hint.event_id.as_str()).field("type", hint.kind.as_str());
        if hint.livemode != self.mode.livemode() {
            let text = "ignored: the event is of Stripe's other mode than this deployment";
            return (Answer::OtherMode, about("event of the other mode"), text.to_owned());
        }
        if relevance(&hint.kind) == Relevance::None {
            return (Answer::Irrelevant, about("event of no use"), "ignored: nothing depends on events of this type".to_owned());
        }
        let about = about("hint queued").maybe("customer", hint.customer.as_ref());
        match self.hints.send(&hint, hint.event_id.as_str()).await {
            Ok(()) if hint.names_nothing() => {
                (Answer::QueuedInVain, about.field("message", "event that names nothing"), "queued".to_owned())
            }
            Ok(()) => (Answer::Queued, about, "queued".to_owned()),
            Err(error) => (
                Answer::NotReady,
                about.field("message", "hint not queued").field("error", error.to_string()),
                "not queued".to_owned(),
            ),
        }
    }
}
