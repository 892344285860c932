"""Every answer there is: one closed enum per verb.

Each value carries a stable number (stored and on the wire), a slug (its name: metrics, ledger, API), the clerk's sentence in
zh-CN and in English, and what to do next. A retired number is never used again. Sentences with {names} are filled from the
answer's facts by `Verdict.say`. An answer that several verbs give is written once, so that a clerk always reads the same
sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple, Self


class Next(IntEnum):
    """What the clerk (or the calling program) does next."""

    FINAL = 1
    REFRESH = 2
    RETRY = 3
    ASK_CUSTOMER = 4
    MANUAL_REVIEW = 5


class Answer(NamedTuple):
    """What stands behind a verdict: the next step, both sentences, and whether the verb did what was asked."""

    next: Next
    zh: str
    en: str
    success: bool = False


class _Facts(dict[str, Any]):
    """Facts for a sentence; one that is not known reads as an ellipsis instead of failing the answer."""

    def __missing__(self, key: str) -> str:
        return "…"


class Verdict(Enum):
    """Base of the closed enums; `value` is the stable number."""

    answer: Answer

    def __new__(cls, number: int, answer: Answer) -> Self:
        """Make the member: its value is the number alone."""
        member = object.__new__(cls)
        member._value_ = number
        member.answer = answer
        return member

    @property
    def number(self) -> int:
        """The stable number, as stored and on the wire."""
        return int(self._value_)

    @classmethod
    def numbered(cls, number: int) -> Self:
        """The member with a stable number. Raises KeyError for a number that this version doesn't know."""
        members: dict[int, Self] = cls._value2member_map_  # type: ignore[assignment]  # kept by Enum itself, by value
        return members[number]

    @property
    def slug(self) -> str:
        """Stable name, for metrics, ledger and API."""
        return self.name

    @property
    def success(self) -> bool:
        """True when the verb did what was asked."""
        return self.answer.success

    @property
    def next(self) -> Next:
        """What to do next."""
        return self.answer.next

    def say(self, **facts: object) -> tuple[str, str]:
        """The clerk's sentences (zh-CN, English) with the facts filled in.

        `terminal_id` reads as the terminal, or as a reviewer when it is 0: a code may be redeemed by hand. `window` reads as the
        next opening, or as none in sight when it is empty. `proof_methods` are those of engine.policies.ProofMethod.
        """
        filled = _Facts(facts)
        if "window" in filled:
            window = filled["window"]
            filled["opens_zh"] = f"下次营业 {window}" if window else "暂停营业，请顾客联系商城"
            filled["opens_en"] = (
                f"its next opening hours are {window}"
                if window
                else "it is closed until further notice, the customer asks the mall"
            )
            filled["window"] = window or "—"
        if "proof_methods" in filled:
            *others, last = (_PROOFS[method] for method in filled["proof_methods"])
            filled["methods_zh"] = "或".join(filter(None, ("、".join(zh for zh, _ in others), last[0])))
            filled["methods_en"] = " or ".join(filter(None, (", ".join(en for _, en in others), last[1])))
        if "terminal_id" in filled:
            number = filled["terminal_id"]
            filled["by_zh"] = f"终端 {number} " if number else "人工审核"
            filled["by_en"] = f"terminal {number}" if number else "a reviewer"
        return self.answer.zh.format_map(filled), self.answer.en.format_map(filled)


_PROOFS: Final[Mapping[str, tuple[str, str]]] = {
    "face": ("人脸", "face"),
    "id_document": ("证件", "document"),
    "two_staff": ("双人复核", "two staff"),
}
"""How the ways of proof are called, in zh-CN and English."""

_UNKNOWN_CODE = Answer(Next.FINAL, "系统中没有该提货码。", "There is no such code in the system.")
_INVALID_CODE = Answer(
    Next.FINAL, "无效的提货码，请勿交付。", "Not a valid pickup code: do not hand anything over."
)
_ALREADY_REDEEMED = Answer(
    Next.FINAL,
    "该码已于 {at} 由{by_zh}核销，请勿重复交付。",
    "Already redeemed at {at} by {by_en}: do not hand over again.",
)
_EXPIRED = Answer(
    Next.FINAL, "提货码已过期，请顾客联系商城。", "The code has expired: the customer asks the mall."
)
_VOIDED = Answer(
    Next.FINAL, "提货码已作废，请顾客联系商城。", "The code is void: the customer asks the mall."
)
_LOCKED = Answer(
    Next.MANUAL_REVIEW,
    "该码已锁定，转人工审核（{review_id}）。",
    "The code is locked: it waits for review {review_id}.",
)
_STALE_CODE = Answer(
    Next.REFRESH,
    "二维码已失效（可能是截图），请顾客刷新后再扫。",
    "The QR code is stale (a screenshot?): ask the customer to refresh it and scan again.",
)
_WRONG_STORE = Answer(
    Next.FINAL,
    "该码应在门店 {store_id}（{store_name}）提货。",
    "This code is for store {store_id} ({store_name}).",
)
_OUT_OF_RANGE = Answer(
    Next.RETRY,
    "终端定位超出门店范围，请在门店内重试。",
    "The terminal's position is outside the store's radius: try again inside the store.",
)
_LOCATION_REQUIRED = Answer(
    Next.RETRY,
    "该门店核销需要定位，请打开定位后重试。",
    "This store requires a position: switch location on and try again.",
)
_LOCATION_UNRELIABLE = Answer(
    Next.RETRY, "定位精度不足，请稍候再试。", "The position is too inaccurate: wait a moment and try again."
)
_PIN_REQUIRED = Answer(
    Next.ASK_CUSTOMER, "请顾客提供 6 位提货密码。", "Ask the customer for the 6-digit PIN."
)
_PROOF_REQUIRED = Answer(
    Next.ASK_CUSTOMER,
    "贵重商品需核验身份（{methods_zh}）。",
    "Valuable goods: prove the customer's identity ({methods_en}) and try again.",
)
_OUTSIDE_WINDOW = Answer(
    Next.RETRY,
    "该码仅可在提货时段内提货，下一时段：{window}。",
    "This code is handed out in the store's pickup windows only; the next one: {window}.",
)
_OUT_OF_STOCK = Answer(
    Next.MANUAL_REVIEW,
    "商品 {sku_id} 账面无货，请核对库存。",
    "No stock of SKU {sku_id} on the books: check the shelf and adjust the stock.",
)
_STORE_CLOSED = Answer(
    Next.FINAL, "门店已停业，暂不能核销。", "The store is closed for pickup: the customer asks the mall."
)
_NOT_OPEN = Answer(Next.RETRY, "门店当前未营业：{opens_zh}。", "The store is not open now: {opens_en}.")
_NOTHING_LEFT = Answer(
    Next.FINAL,
    "商品 {sku_id} 可提数量不足。",
    "The code has not that many units of SKU {sku_id} left.",
)
_STOCK_SHORT = Answer(
    Next.ASK_CUSTOMER,
    "商品 {sku_id} 在该门店库存不足，请换门店或减少数量。",
    "SKU {sku_id} is short at this store: choose another store or fewer units.",
)
_CHANNEL_CLOSED = Answer(
    Next.ASK_CUSTOMER,
    "商品 {sku_id} 库存紧张，该门店线上渠道已关闭，请换门店。",
    "SKU {sku_id} is nearly gone: this store's online channel is closed for it, choose another store.",
)
_PROMOTION_STOPPED = Answer(
    Next.ASK_CUSTOMER,
    "商品 {sku_id} 库存紧张，促销发码已停止。",
    "SKU {sku_id} is running low: promotional issue is stopped for it.",
)
_NOT_CONFIRMED = Answer(
    Next.ASK_CUSTOMER,
    "订单尚未付款确认，请顾客完成付款。",
    "The order is not confirmed yet: ask the customer to complete the payment.",
)
_UNKNOWN_SKU = Answer(
    Next.FINAL,
    "商品 {sku_id} 不在商城目录中。",
    "SKU {sku_id} is not in the mall's catalogue: put it there first.",
)
_PROOF_UNAVAILABLE = Answer(
    Next.FINAL,
    "贵重商品凭身份核验提货，但尚无已登记的核验机构能按规则核验（不得仅限人脸）：请先登记核验机构，或在规则中写明免核验。",
    "Valuable goods need a proof of who the customer is, and no registered provider gives one that the policy offers (face alone"
    " is not enough): register a provider, or have the policy say that none is needed.",
)
_SKU_FROZEN = Answer(
    Next.FINAL,
    "商品 {sku_id} 在该门店账实不符，已暂停发码，请待核对后重试或换门店。",
    "SKU {sku_id} is frozen at this store: its books don't agree. Choose another store, or have it checked and unfrozen.",
)
_UNKNOWN_STORE = Answer(
    Next.FINAL,
    "门店 {store_id} 不存在或不属于该商城。",
    "Store {store_id} is unknown or does not serve this mall.",
)


class HoldVerdict(Verdict):
    """Answers of hold. Refusals have IssueVerdict's numbers."""

    HELD = (
        1,
        Answer(Next.FINAL, "库存已预留，等待付款。", "The stock is held until the payment.", success=True),
    )
    STOCK_SHORT = 2, _STOCK_SHORT
    UNKNOWN_SKU = 3, _UNKNOWN_SKU
    UNKNOWN_STORE = 4, _UNKNOWN_STORE
    STORE_CLOSED = 5, _STORE_CLOSED
    CHANNEL_CLOSED = 6, _CHANNEL_CLOSED
    PROMOTION_STOPPED = 7, _PROMOTION_STOPPED
    PROOF_UNAVAILABLE = 8, _PROOF_UNAVAILABLE
    SKU_FROZEN = 9, _SKU_FROZEN


class IssueVerdict(Verdict):
    """Answers of issue."""

    ISSUED = 1, Answer(Next.FINAL, "提货码已生成。", "The pickup code is issued.", success=True)
    STOCK_SHORT = 2, _STOCK_SHORT
    UNKNOWN_SKU = 3, _UNKNOWN_SKU
    UNKNOWN_STORE = 4, _UNKNOWN_STORE
    STORE_CLOSED = 5, _STORE_CLOSED
    CHANNEL_CLOSED = 6, _CHANNEL_CLOSED
    PROMOTION_STOPPED = 7, _PROMOTION_STOPPED
    PROOF_UNAVAILABLE = 8, _PROOF_UNAVAILABLE
    SKU_FROZEN = 9, _SKU_FROZEN


class ConfirmVerdict(Verdict):
    """Answers of confirm."""

    CONFIRMED = 1, Answer(Next.FINAL, "提货码已生效。", "The code is live.", success=True)
    ALREADY_CONFIRMED = 2, Answer(Next.FINAL, "该提货码此前已生效。", "The code was live already.")
    EXPIRED = (
        3,
        Answer(
            Next.FINAL,
            "预留已超时，库存已释放，请重新下单。",
            "The hold has expired and its stock is free: hold again.",
        ),
    )
    VOIDED = 4, _VOIDED
    UNKNOWN_CODE = 5, _UNKNOWN_CODE


class ExtendVerdict(Verdict):
    """Answers of extend."""

    EXTENDED = 1, Answer(Next.FINAL, "提货期限已延长。", "The code lives longer.", success=True)
    ALREADY_REDEEMED = (
        2,
        Answer(
            Next.FINAL,
            "该码已核销完毕，无需延期。",
            "Everything on the code is handed out: there is nothing left to extend.",
        ),
    )
    VOIDED = 3, _VOIDED
    EXPIRED = 4, _EXPIRED
    UNKNOWN_CODE = 5, _UNKNOWN_CODE
    NOT_CONFIRMED = 6, _NOT_CONFIRMED
    NOT_LATER = (
        7,
        Answer(Next.FINAL, "新的期限不晚于现有期限。", "The new expiry is not later than the code's own."),
    )
    TOO_LONG = (
        8,
        Answer(
            Next.FINAL,
            "提货码自生成起最长 400 天，请作废后重新生成。",
            "A code lives at most 400 days from its issue: void it and issue another.",
        ),
    )


class ReverseVerdict(Verdict):
    """Answers of reverse."""

    REVERSED = (
        1,
        Answer(Next.FINAL, "核销已撤销，请收回商品。", "Reversed: take the goods back.", success=True),
    )
    NOT_REDEEMED = (
        2,
        Answer(
            Next.FINAL,
            "该提货码没有可撤销的核销记录。",
            "There is nothing handed out on this code that could be taken back.",
        ),
    )
    REVERSAL_CLOSED = (
        3,
        Answer(Next.FINAL, "已超过可撤销时间。", "The time in which a redemption can be reversed is over."),
    )
    REVERSAL_LIMIT = (
        4,
        Answer(
            Next.MANUAL_REVIEW,
            "该提货码撤销次数已达上限。",
            "The code was redeemed and reversed as often as is allowed.",
        ),
    )
    UNKNOWN_CODE = 5, _UNKNOWN_CODE
    WRONG_STORE = 6, _WRONG_STORE


class ReviewVerdict(Verdict):
    """Answers of a reviewer's decision."""

    APPROVED = (
        1,
        Answer(Next.FINAL, "审核通过，提货码已解锁。", "Approved: the code is free again.", success=True),
    )
    REDEEMED = (
        2,
        Answer(
            Next.FINAL, "已人工核销，请交付商品。", "Redeemed by hand: hand over the goods.", success=True
        ),
    )
    VOIDED = (
        3,
        Answer(Next.FINAL, "已作废，库存已释放。", "The code is void and its stock is free.", success=True),
    )
    NOT_LOCKED = (
        4,
        Answer(Next.FINAL, "该提货码未被锁定。", "The code is not locked: there is nothing to review."),
    )
    UNKNOWN_CODE = 5, _UNKNOWN_CODE
    EXPIRED = 6, _EXPIRED
    OUT_OF_STOCK = 7, _OUT_OF_STOCK
    OWN_TRY = (
        8,
        Answer(
            Next.MANUAL_REVIEW,
            "不能审核本人操作的核销，请由他人审核。",
            "Nobody reviews tries of their own: ask somebody else.",
        ),
    )


class TransferVerdict(Verdict):
    """Answers of a transfer between stores."""

    TRANSFERRED = 1, Answer(Next.FINAL, "调拨成功。", "The units are transferred.", success=True)
    STOCK_SHORT = (
        2,
        Answer(
            Next.FINAL,
            "商品 {sku_id} 可调拨数量不足。",
            "SKU {sku_id} has not that many units that are free to go.",
        ),
    )
    UNKNOWN_SKU = 3, _UNKNOWN_SKU
    UNKNOWN_STORE = 4, _UNKNOWN_STORE
    BUNDLE = (
        5,
        Answer(
            Next.FINAL,
            "商品 {sku_id} 是套装，请调拨其组成商品。",
            "SKU {sku_id} is a bundle and has no stock of its own: transfer its parts.",
        ),
    )
    ABOVE_LIMIT = (
        6,
        Answer(
            Next.FINAL,
            "门店 {store_id} 的商品 {sku_id} 库存将超出上限。",
            "SKU {sku_id} would exceed the largest stock figure at store {store_id}: check the count.",
        ),
    )


class RenderVerdict(Verdict):
    """Answers of render."""

    RENDERED = 1, Answer(Next.FINAL, "动态码已生成。", "The payload is rendered.", success=True)
    UNKNOWN_CODE = 2, _UNKNOWN_CODE
    ALREADY_REDEEMED = 3, _ALREADY_REDEEMED
    VOIDED = 4, _VOIDED
    EXPIRED = 5, _EXPIRED
    LOCKED = 6, _LOCKED
    TOO_MANY_CHANGES = (
        7,
        Answer(
            Next.RETRY,
            "该提货码变更次数过多，不能预先生成，请逐次刷新。",
            "The code changed too often to be rendered ahead: ask for one payload at a time.",
        ),
    )
    NOT_CONFIRMED = 8, _NOT_CONFIRMED
    LOCATION_REQUIRED = (
        9,
        Answer(
            Next.RETRY,
            "请打开手机定位后再出示提货码。",
            "Switch on the phone's location to show the code.",
        ),
    )
    LOCATION_UNRELIABLE = 10, _LOCATION_UNRELIABLE
    OUT_OF_RANGE = (
        11,
        Answer(
            Next.RETRY,
            "您不在门店附近，到店后再出示提货码。还可尝试 {tries_left} 次。",
            "You are not near the store: show the code when you are there. Tries left: {tries_left}.",
        ),
    )


class RedeemVerdict(Verdict):
    """Answers of redeem."""

    REDEEMED = 1, Answer(Next.FINAL, "核销成功，请交付商品。", "Redeemed: hand over the goods.", success=True)
    ALREADY_REDEEMED = 2, _ALREADY_REDEEMED
    EXPIRED = 3, _EXPIRED
    VOIDED = 4, _VOIDED
    STALE_CODE = 5, _STALE_CODE
    INVALID_CODE = 6, _INVALID_CODE
    UNKNOWN_CODE = 7, _UNKNOWN_CODE
    WRONG_STORE = 8, _WRONG_STORE
    OUT_OF_RANGE = 9, _OUT_OF_RANGE
    LOCATION_REQUIRED = 10, _LOCATION_REQUIRED
    LOCATION_UNRELIABLE = 11, _LOCATION_UNRELIABLE
    PIN_REQUIRED = 12, _PIN_REQUIRED
    PIN_WRONG = (
        13,
        Answer(
            Next.ASK_CUSTOMER,
            "提货密码错误，还可尝试 {tries_left} 次。",
            "Wrong PIN. Tries left: {tries_left}.",
        ),
    )
    LOCKED = 14, _LOCKED
    OUT_OF_STOCK = 15, _OUT_OF_STOCK
    STORE_CLOSED = 16, _NOT_OPEN
    NOTHING_LEFT = 17, _NOTHING_LEFT
    NOT_CONFIRMED = 18, _NOT_CONFIRMED
    PROOF_REQUIRED = 19, _PROOF_REQUIRED
    PROOF_REJECTED = (
        20,
        Answer(
            Next.ASK_CUSTOMER,
            "身份核验未通过，还可尝试 {tries_left} 次。",
            "The proof of identity is rejected. Tries left: {tries_left}.",
        ),
    )
    OUTSIDE_WINDOW = 21, _OUTSIDE_WINDOW


class InspectVerdict(Verdict):
    """Answers of inspect: what redeem would say now, changing nothing. Refusals have RedeemVerdict's numbers.

    A wrong PIN is never judged here (that would be a free guess): a static code is REDEEMABLE subject to its PIN.
    """

    REDEEMABLE = (
        1,
        Answer(Next.FINAL, "该码有效，可以核销。", "The code is good: it can be redeemed.", success=True),
    )
    ALREADY_REDEEMED = 2, _ALREADY_REDEEMED
    EXPIRED = 3, _EXPIRED
    VOIDED = 4, _VOIDED
    STALE_CODE = 5, _STALE_CODE
    INVALID_CODE = 6, _INVALID_CODE
    UNKNOWN_CODE = 7, _UNKNOWN_CODE
    WRONG_STORE = 8, _WRONG_STORE
    OUT_OF_RANGE = 9, _OUT_OF_RANGE
    LOCATION_REQUIRED = 10, _LOCATION_REQUIRED
    LOCATION_UNRELIABLE = 11, _LOCATION_UNRELIABLE
    LOCKED = 14, _LOCKED
    OUT_OF_STOCK = 15, _OUT_OF_STOCK
    STORE_CLOSED = 16, _NOT_OPEN
    NOT_CONFIRMED = 18, _NOT_CONFIRMED
    OUTSIDE_WINDOW = 21, _OUTSIDE_WINDOW


class VoidVerdict(Verdict):
    """Answers of void."""

    VOIDED = (
        1,
        Answer(
            Next.FINAL,
            "提货码已作废，预留库存已释放。",
            "The code is void and its reserved stock is free again.",
            success=True,
        ),
    )
    ALREADY_VOIDED = 2, Answer(Next.FINAL, "该提货码此前已作废。", "The code was void already.")
    ALREADY_REDEEMED = 3, _ALREADY_REDEEMED
    EXPIRED = 4, _EXPIRED
    UNKNOWN_CODE = 5, _UNKNOWN_CODE


class StockVerdict(Verdict):
    """Answers of receive and adjust."""

    RECEIVED = 1, Answer(Next.FINAL, "入库成功。", "The stock is received.", success=True)
    ADJUSTED = 2, Answer(Next.FINAL, "库存已调整。", "The stock is adjusted.", success=True)
    BELOW_ZERO = (
        3,
        Answer(
            Next.FINAL,
            "商品 {sku_id} 现有 {on_hand} 件，不能扣减到零以下。",
            "SKU {sku_id} has {on_hand} on hand: it can't go below zero.",
        ),
    )
    ABOVE_LIMIT = (
        4,
        Answer(
            Next.FINAL,
            "商品 {sku_id} 的库存超出上限。",
            "SKU {sku_id} would exceed the largest stock figure: check the count.",
        ),
    )
    UNKNOWN_SKU = 5, _UNKNOWN_SKU
    UNKNOWN_STORE = 6, _UNKNOWN_STORE
    BUNDLE = (
        7,
        Answer(
            Next.FINAL,
            "商品 {sku_id} 是套装，请调整其组成商品的库存。",
            "SKU {sku_id} is a bundle and has no stock of its own: change the stock of its parts.",
        ),
    )
