//! E-mails: which notices have one, whether what it would say is still true, and what it says in words and figures.

use std::fmt;

use super::{
    access::{Reason, State},
    notice::{Notice, NoticeKind},
    price_list::PriceList,
    selling::Link,
    time::{DAY_SECS, EpochSecs, HOUR_SECS},
};

/// An e-mail that is older than this is not sent any more, in seconds: what it tells has become history.
const STALE_AFTER_SECS: i64 = DAY_SECS;
/// One that asks for no payment: by then the change may be undone, and nobody looks whether it is.
const NEWS_STALE_AFTER_SECS: i64 = HOUR_SECS;
/// A name is cut here. Whoever pays chose it.
const MAX_NAME_CHARS: usize = 80;
/// The longest address that is tried, as RFC 5321 bounds it.
const MAX_ADDRESS_CHARS: usize = 254;

/// Currencies without a minor unit, as Stripe counts them. Source: Stripe's documentation, "Supported currencies".
const WHOLE: [&str; 15] =
    ["bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"];
/// Currencies whose amounts Stripe gives in hundredths although they have none: always whole hundreds.
const HUNDREDTHS_OF_NOTHING: [&str; 2] = ["isk", "ugx"];
/// Currencies of a thousand minor units.
const THOUSANDTHS: [&str; 5] = ["bhd", "jod", "kwd", "omr", "tnd"];

/// Whom an e-mail goes to, as Stripe knows the customer. Its `Debug` says nothing of it (G10).
#[derive(Clone, PartialEq, Eq)]
pub struct Addressee {
    /// The address; not every customer has one.
    pub address: Option<String>,
    /// The name the payer chose.
    pub name: Option<String>,
}

impl fmt::Debug for Addressee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Addressee")
    }
}

/// An invoice, as far as an e-mail asks for its payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// Whether it is still to be paid.
    pub is_open: bool,
    /// What is still to be paid, in minor units.
    pub due_minor: u64,
    /// ISO 4217, lower case.
    pub currency: String,
    /// Stripe's page where it can be paid.
    pub page: Option<Link>,
}

/// Which e-mail a notice has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterKind {
    /// A payment failed.
    PaymentFailed,
    /// It is still to be paid.
    PaymentReminder,
    /// Access has ended.
    AccessEnded,
    /// Access is back.
    AccessRestored,
    /// The subscription is going to end.
    SubscriptionEnding,
    /// The trial is going to end.
    TrialEnding,
    /// The plan is another.
    PlanChanged,
}

impl LetterKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PaymentFailed,
        Self::PaymentReminder,
        Self::AccessEnded,
        Self::AccessRestored,
        Self::SubscriptionEnding,
        Self::TrialEnding,
        Self::PlanChanged,
    ];

    /// The e-mail of this notice, if it has one.
    #[must_use]
    pub fn of(notice: &Notice) -> Option<Self> {
        Some(match notice.kind {
            NoticeKind::GraceStarted => Self::PaymentFailed,
            NoticeKind::GraceReminder => Self::PaymentReminder,
            // Who has cancelled or paused knows it. A pause by a failed payment names the invoice.
            NoticeKind::AccessEnded if notice.reason == Some(Reason::PaymentOverdue) || notice.invoice_id.is_some() => {
                Self::AccessEnded
            }
            // In a grace period the letter about the failed payment says how long access lasts.
            NoticeKind::AccessRestored if notice.state != State::Grace => Self::AccessRestored,
            NoticeKind::SubscriptionEnding => Self::SubscriptionEnding,
            NoticeKind::TrialEnding => Self::TrialEnding,
            NoticeKind::PlanChanged => Self::PlanChanged,
            NoticeKind::AccountProvisioned
            | NoticeKind::GraceCleared
            | NoticeKind::AccessEnded
            | NoticeKind::AccessRestored
            | NoticeKind::SubscriptionContinued
            | NoticeKind::SubscriptionEnded
            | NoticeKind::PaymentRefunded
            | NoticeKind::PaymentDisputed => return None,
        })
    }

    /// Whether it asks for a payment, so that it is untrue once the invoice is paid or written off.
    #[must_use]
    pub fn asks_for_payment(self) -> bool {
        matches!(self, Self::PaymentFailed | Self::PaymentReminder | Self::AccessEnded)
    }
}

/// What became of a notice's e-mail. Once it is settled it stays so, but that a known fate replaces an unknown one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The mail service took it, under this id.
    Sent {
        /// The mail service's name of the e-mail.
        message_id: String,
    },
    /// It was not taken, and is not tried again.
    Refused {
        /// The mail service's error code, or `unusable_address`.
        code: String,
    },
    /// The customer has no address, or is deleted.
    NoAddress,
    /// What it would have said was not true any more.
    Outdated,
    /// No e-mail is sent: this notice has none, or e-mail is switched off.
    Off,
    /// It was tried, and nobody knows whether it was taken. It is not tried again.
    Unknown,
}

impl Fate {
    /// Its name, as it is stored and logged.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Sent { .. } => "sent",
            Self::Refused { .. } => "refused",
            Self::NoAddress => "no_address",
            Self::Outdated => "outdated",
            Self::Off => "off",
            Self::Unknown => "unknown",
        }
    }
}

/// What the mail service told afterwards of an e-mail that it had taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feedback {
    /// What it told.
    pub kind: FeedbackKind,
    /// Its own word for the reason; never an address.
    pub code: String,
}

/// What can be told of an e-mail afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedbackKind {
    /// It could not be delivered.
    Bounced,
    /// Its reader called it unwanted.
    Complained,
    /// The mail service found something bad in it, and did not send it.
    Rejected,
}

/// Who writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letterhead {
    /// The product's name.
    pub product: String,
    /// Where its users find help, if that is an address.
    pub support: Option<String>,
}

/// What an e-mail says. The templates put it into sentences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Which one it is.
    pub kind: LetterKind,
    /// The product's name.
    pub product: String,
    /// Where help is, if that is known.
    pub support: Option<String>,
    /// The reader's name, if it is known.
    pub name: Option<String>,
    /// The plan's name for people.
    pub plan: Option<String>,
    /// The plan's before, where it changed.
    pub previous_plan: Option<String>,
    /// The moment it is about, in words: the end of access, of the subscription or of the trial.
    pub until: Option<String>,
    /// Whether the reader has access now.
    pub has_access: bool,
    /// What is to be paid, in figures.
    pub amount: Option<String>,
    /// Where it can be paid.
    pub link: Option<Link>,
}

/// Whether and to whom an e-mail is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// To this address.
    To {
        /// The address.
        address: String,
        /// What it says.
        letter: Letter,
    },
    /// It is not written, for this reason.
    Not(Fate),
}

/// Whether an e-mail of this notice is too late at the real moment `now_ms`. The account may live by another clock: what counts is the
/// time since the commit.
#[must_use]
pub fn is_stale(notice: &Notice, committed_at_ms: i64, now_ms: i64) -> bool {
    let waited_secs = now_ms.saturating_sub(committed_at_ms).div_euclid(1000);
    let is_over = match notice.kind {
        // These speak of a time to come.
        NoticeKind::GraceStarted | NoticeKind::GraceReminder | NoticeKind::SubscriptionEnding | NoticeKind::TrialEnding => {
            notice.access_until.is_some_and(|until| until <= notice.at.plus_secs(waited_secs))
        }
        _ => false,
    };
    let stale_after_secs = match notice.kind {
        NoticeKind::SubscriptionEnding | NoticeKind::TrialEnding | NoticeKind::PlanChanged | NoticeKind::AccessRestored => {
            NEWS_STALE_AFTER_SECS
        }
        _ => STALE_AFTER_SECS,
    };
    waited_secs > stale_after_secs || is_over
}

/// Writes the e-mail of a notice, if what it says is still true.
#[must_use]
pub fn write(
    kind: LetterKind,
    notice: &Notice,
    letterhead: &Letterhead,
    prices: &PriceList,
    addressee: Option<Addressee>,
    bill: Option<Bill>,
) -> Written {
    let Some(addressee) = addressee else { return Written::Not(Fate::NoAddress) };
    let Some(address) = addressee.address.filter(|address| !address.trim().is_empty()) else {
        return Written::Not(Fate::NoAddress);
    };
    if kind.asks_for_payment() && notice.invoice_id.is_some() && !bill.as_ref().is_some_and(|bill| bill.is_open) {
        return Written::Not(Fate::Outdated);
    }
    if !is_address(&address) {
        return Written::Not(Fate::Refused { code: "unusable_address".to_owned() });
    }
    let plan_name = |id: &String| {
        let plan = prices.plans.iter().find(|plan| plan.id.as_str() == id);
        one_line(plan.map_or(id.as_str(), |plan| plan.name.as_str()))
    };
    let bill = bill.filter(|_| kind.asks_for_payment());
    let letter = Letter {
        kind,
        product: one_line(&letterhead.product),
        support: letterhead.support.as_deref().map(one_line),
        name: addressee.name.as_deref().map(one_line).filter(|name| !name.is_empty()),
        plan: notice.plan.as_ref().map(plan_name),
        previous_plan: notice.previous_plan.as_ref().map(plan_name),
        until: notice.access_until.map(in_words),
        has_access: notice.state.allows() && notice.reason.is_none(),
        amount: bill.as_ref().map(|bill| money(bill.due_minor, &bill.currency)),
        link: bill.and_then(|bill| bill.page).filter(|page| page.expose().starts_with("https://")),
    };
    Written::To { address, letter }
}

/// A moment in words, to the minute, in UTC: `29 November 2026 at 12:00 UTC`.
#[must_use]
pub fn in_words(moment: EpochSecs) -> String {
    moment.civil().strftime("%-d %B %Y at %H:%M UTC").to_string()
}

/// An amount in figures: `1,234.50 EUR`, `5,000 JPY`, `1.250 KWD`.
#[must_use]
pub fn money(minor: u64, currency: &str) -> String {
    let code = currency.to_ascii_uppercase();
    let currency = currency.to_ascii_lowercase();
    let currency = currency.as_str();
    let digits = if WHOLE.contains(&currency) {
        0
    } else if THOUSANDTHS.contains(&currency) {
        3
    } else {
        2
    };
    let unit = 10_u64.saturating_pow(digits);
    let (whole, rest) = (minor.checked_div(unit).unwrap_or(0), minor.checked_rem(unit).unwrap_or(0));
    let whole = grouped(whole);
    let is_whole = digits == 0 || (HUNDREDTHS_OF_NOTHING.contains(&currency) && rest == 0);
    if is_whole {
        return format!("{whole} {code}");
    }
    let width = usize::try_from(digits).unwrap_or(2);
    format!("{whole}.{rest:0width$} {code}")
}

/// A number with a comma between each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && digits.len().saturating_sub(place).checked_rem(3) == Some(0) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A text as it may stand in a line of a letter or in its subject: without line ends and other control characters, and not long.
fn one_line(text: &str) -> String {
    let hides =
        |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}');
    let visible: String = text.chars().map(|c| if hides(c) { ' ' } else { c }).collect();
    let line = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_NAME_CHARS).collect()
}

/// Whether a text can be one address and nothing else: whatever could begin a second one, a name or a header is not in it.
fn is_address(text: &str) -> bool {
    let usable = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | ';' | ':' | '<' | '>' | '"' | '(' | ')' | '[' | ']' | '\\');
    let parts = text.split_once('@');
    let is_whole = parts.is_some_and(|(local, domain)| !local.is_empty() && domain.contains('.') && !domain.contains('@'));
    is_whole && text.len() <= MAX_ADDRESS_CHARS && text.chars().all(usable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        access::State,
        id::{InvoiceId, UserId},
    };

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn a_letter_that_asks_for_a_payment_is_untrue_once_it_is_paid_and_the_others_are_not() {
        for (kind, asks) in [
            (LetterKind::PaymentFailed, true),
            (LetterKind::PaymentReminder, true),
            (LetterKind::AccessEnded, true),
            (LetterKind::AccessRestored, false),
        ] {
            assert_eq!(kind.asks_for_payment(), asks, "{kind:?}");
        }
    }

    #[test]
    fn an_addressee_is_printed_without_address_and_name() {
        let addressee = Addressee { address: Some("reader@example.com".into()), name: Some("Reader".into()) };
        assert_eq!(format!("{addressee:?}"), "Addressee");
    }

    fn notice(kind: NoticeKind) -> Notice {
        Notice {
            notice_id: "3:ada/1:2/13:grace.started".to_owned(),
            kind,
            user_id: UserId::new("ada").unwrap(),
            customer_id: None,
            at: at("2026-11-22T12:00:00Z"),
            state: State::Grace,
            reason: None,
            plan: Some("pro".to_owned()),
            previous_plan: None,
            access_until: Some(at("2026-11-29T12:00:00Z")),
            invoice_id: Some(InvoiceId::new("in_1").unwrap()),
            day: None,
            payment: None,
        }
    }

    fn written(notice: &Notice, addressee: Option<Addressee>, bill: Option<Bill>) -> Written {
        let letterhead = Letterhead { product: "Acme AI".to_owned(), support: None };
        write(LetterKind::of(notice).unwrap(), notice, &letterhead, &PriceList::shipped().unwrap(), addressee, bill)
    }

    fn addressee(address: &str, name: &str) -> Option<Addressee> {
        Some(Addressee { address: Some(address.to_owned()), name: Some(name.to_owned()) })
    }

    fn bill(is_open: bool) -> Option<Bill> {
        let page = Some(Link::new("https://invoice.stripe.com/i/in_1".to_owned()));
        Some(Bill { is_open, due_minor: 4_900, currency: "eur".to_owned(), page })
    }

    #[test]
    fn money_has_its_currencys_own_minor_units() {
        for (minor, currency, text) in [
            (0, "eur", "0.00 EUR"),
            (5, "eur", "0.05 EUR"),
            (123_450, "usd", "1,234.50 USD"),
            (100_000_000, "usd", "1,000,000.00 USD"),
            (5_000, "jpy", "5,000 JPY"),
            (500, "xpf", "500 XPF"),
            (1_250, "kwd", "1.250 KWD"),
            (5, "tnd", "0.005 TND"),
            (50_000, "isk", "500 ISK"),
            (50_000, "UGX", "500 UGX"),
            (999, "huf", "9.99 HUF"),
            (u64::MAX, "eur", "184,467,440,737,095,516.15 EUR"),
        ] {
            assert_eq!(money(minor, currency), text);
        }
    }

    #[test]
    fn a_moment_is_said_in_words_in_utc() {
        assert_eq!(in_words(at("2026-11-09T23:59:59Z")), "9 November 2026 at 23:59 UTC");
        assert_eq!(in_words(at("2028-02-29T01:00:00+02:00")), "28 February 2028 at 23:00 UTC");
    }

    #[test]
    fn a_letter_that_asks_for_a_payment_is_written_only_while_it_is_owed() {
        for kind in [NoticeKind::GraceStarted, NoticeKind::GraceReminder, NoticeKind::AccessEnded] {
            let mut notice = notice(kind);
            notice.reason = (kind == NoticeKind::AccessEnded).then_some(Reason::PaymentOverdue);
            let Written::To { letter, .. } = written(&notice, addressee("ada@example.com", "Ada"), bill(true)) else {
                panic!("{kind:?} is not written")
            };
            assert_eq!((letter.amount.as_deref(), letter.link.is_some()), (Some("49.00 EUR"), true));
            for gone in [bill(false), None] {
                assert_eq!(written(&notice, addressee("ada@example.com", "Ada"), gone), Written::Not(Fate::Outdated), "{kind:?}");
            }
            // Overdue without an invoice of which we know: still true, but without a sum.
            notice.invoice_id = None;
            assert!(matches!(written(&notice, addressee("ada@example.com", "Ada"), None), Written::To { .. }));
        }
    }

    #[test]
    fn nobody_to_write_to_is_known_before_anything_is_tried() {
        let notice = notice(NoticeKind::GraceStarted);
        assert_eq!(written(&notice, None, bill(true)), Written::Not(Fate::NoAddress), "deleted");
        let silent = Some(Addressee { address: None, name: None });
        assert_eq!(written(&notice, silent, bill(true)), Written::Not(Fate::NoAddress));
        assert_eq!(written(&notice, addressee("  ", ""), bill(true)), Written::Not(Fate::NoAddress));
        for unusable in [
            "ada",
            "@example.com",
            "ada@example",
            "a@b@example.com",
            "ada@example.com, eve@example.com",
            "<ada@example.com>",
            "ada@example.com\r\nBcc: eve@example.com",
            "ada @example.com",
            "ada@exämple.com",
            "ada@example.com;x",
        ] {
            let refused = Written::Not(Fate::Refused { code: "unusable_address".to_owned() });
            assert_eq!(written(&notice, addressee(unusable, ""), bill(true)), refused, "{unusable}");
        }
        let long = format!("{}@example.com", "a".repeat(254));
        assert!(matches!(written(&notice, addressee(&long, ""), bill(true)), Written::Not(Fate::Refused { .. })));
    }

    #[test]
    fn a_name_stays_on_its_line_and_says_what_it_shows() {
        let notice = notice(NoticeKind::GraceStarted);
        for (given, shown) in [
            ("Ada\r\nBcc: eve@example.com", Some("Ada Bcc: eve@example.com")),
            ("  Ada \t Lovelace ", Some("Ada Lovelace")),
            ("\u{202e}adA\u{0}", Some("adA")),
            ("\u{2028}\n", None),
        ] {
            let Written::To { letter, .. } = written(&notice, addressee("ada@example.com", given), bill(true)) else { panic!() };
            assert_eq!(letter.name.as_deref(), shown);
        }
        let Written::To { letter, .. } = written(&notice, addressee("ada@example.com", &"ü".repeat(500)), bill(true)) else {
            panic!()
        };
        assert_eq!(letter.name.unwrap().chars().count(), MAX_NAME_CHARS);
    }

    #[test]
    fn a_link_that_is_no_https_is_left_out() {
        let notice = notice(NoticeKind::GraceStarted);
        let page = Some(Link::new("javascript:alert(1)".to_owned()));
        let bill = Some(Bill { page, ..bill(true).unwrap() });
        let Written::To { letter, .. } = written(&notice, addressee("ada@example.com", "Ada"), bill) else { panic!() };
        assert_eq!(letter.link, None);
    }

    #[test]
    fn a_letter_names_plans_for_people_and_says_whether_its_reader_has_access() {
        let mut notice = notice(NoticeKind::GraceStarted);
        notice.previous_plan = Some("free".to_owned());
        for (plan, state, reason, shown) in [
            ("pro", State::Grace, None, ("Pro", true)),
            ("pro", State::Ended, None, ("Pro", false)),
            // A reason tells of an end, whatever is left besides.
            ("pro", State::Grace, Some(Reason::PaymentOverdue), ("Pro", false)),
            ("gone\nplan", State::Grace, None, ("gone plan", true)),
        ] {
            (notice.plan, notice.state, notice.reason) = (Some(plan.to_owned()), state, reason);
            let Written::To { letter, .. } = written(&notice, addressee("ada@example.com", "Ada"), bill(true)) else { panic!() };
            assert_eq!((letter.plan.as_deref(), letter.has_access), (Some(shown.0), shown.1), "{state:?} {reason:?}");
            assert_eq!(letter.previous_plan.as_deref(), Some("Free"));
        }
    }

    #[test]
    fn each_fate_has_the_name_that_is_stored() {
        let fates = [
            (Fate::Sent { message_id: "1".to_owned() }, "sent"),
            (Fate::Refused { code: "1".to_owned() }, "refused"),
            (Fate::NoAddress, "no_address"),
            (Fate::Outdated, "outdated"),
            (Fate::Off, "off"),
            (Fate::Unknown, "unknown"),
        ];
        for (fate, name) in fates {
            assert_eq!(fate.as_str(), name);
        }
    }

    #[test]
    fn what_has_become_history_is_not_written() {
        let committed_at_ms = 1_000_000_000;
        let hours = |hours: i64| committed_at_ms + hours * 3_600_000;
        for kind in [NoticeKind::SubscriptionEnding, NoticeKind::TrialEnding, NoticeKind::PlanChanged, NoticeKind::AccessRestored]
        {
            let news = notice(kind);
            assert!(!is_stale(&news, committed_at_ms, hours(1)), "{kind:?}");
            assert!(is_stale(&news, committed_at_ms, hours(1) + 1_000), "{kind:?} asks for no payment");
        }
        let mut notice = notice(NoticeKind::GraceReminder);
        for (now_ms, stale) in [(committed_at_ms, false), (hours(24), false), (hours(24) + 1_000, true), (hours(-5), false)] {
            assert_eq!(is_stale(&notice, committed_at_ms, now_ms), stale);
        }
        // By the account's own clock, which may be anywhere, only two hours are left.
        notice.at = at("2026-11-29T10:00:00Z");
        assert!(!is_stale(&notice, committed_at_ms, hours(2) - 1_000) && is_stale(&notice, committed_at_ms, hours(2)));
        notice.kind = NoticeKind::AccessEnded;
        assert!(!is_stale(&notice, committed_at_ms, hours(2)), "it speaks of what has happened");
    }

    #[test]
    fn who_ended_it_is_not_told_of_the_end() {
        let mut notice = notice(NoticeKind::AccessEnded);
        let failed = notice.invoice_id.clone();
        for (reason, invoice_id, letter) in [
            (Some(Reason::PaymentOverdue), failed.clone(), Some(LetterKind::AccessEnded)),
            (Some(Reason::SubscriptionEnded), None, None),
            (Some(Reason::Paused), None, None),
            (Some(Reason::Paused), failed, Some(LetterKind::AccessEnded)),
            (None, None, None),
        ] {
            (notice.reason, notice.invoice_id) = (reason, invoice_id);
            assert_eq!(LetterKind::of(&notice), letter, "{notice:?}");
        }
    }

    #[test]
    fn who_is_in_a_grace_period_gets_the_letter_about_the_payment_and_none_that_all_is_well() {
        let mut notice = notice(NoticeKind::AccessRestored);
        for (state, letter) in [(State::Grace, None), (State::Active, Some(LetterKind::AccessRestored))] {
            notice.state = state;
            assert_eq!(LetterKind::of(&notice), letter);
        }
    }

    #[test]
    fn an_addressee_is_not_shown() {
        let shown = format!("{:?} {:?}", addressee("ada@example.com", "Ada Lovelace"), bill(true));
        assert!(!shown.contains("ada@") && !shown.contains("Lovelace") && !shown.contains("invoice.stripe.com"), "{shown}");
    }
}
