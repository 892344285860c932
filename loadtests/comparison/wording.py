"""What a clerk reads for each verdict of Redeem, and what comes next."""

from __future__ import annotations

from typing import Final, NamedTuple

from pickgate.v1 import redemption_service_pb2 as pb
from pickgate.v1 import types_pb2 as types_pb


class Words(NamedTuple):
    """Sentences and next step of a verdict."""

    zh: str
    en: str
    next_step: types_pb.NextStep.ValueType


WORDS: Final = {
    pb.REDEEM_VERDICT_REDEEMED: Words("核销成功，请交付。", "Redeemed: hand over.", types_pb.NEXT_STEP_FINAL),
    pb.REDEEM_VERDICT_ALREADY_REDEEMED: Words("该码已核销。", "Redeemed before.", types_pb.NEXT_STEP_FINAL),
    pb.REDEEM_VERDICT_EXPIRED: Words("提货码已过期。", "Expired.", types_pb.NEXT_STEP_FINAL),
    pb.REDEEM_VERDICT_VOIDED: Words("提货码已作废。", "Voided.", types_pb.NEXT_STEP_FINAL),
    pb.REDEEM_VERDICT_STALE_CODE: Words(
        "请顾客刷新提货码。", "Refresh the code.", types_pb.NEXT_STEP_REFRESH
    ),
    pb.REDEEM_VERDICT_INVALID_CODE: Words("无效的提货码。", "Not valid.", types_pb.NEXT_STEP_FINAL),
    pb.REDEEM_VERDICT_UNKNOWN_CODE: Words("查无此码。", "Unknown code.", types_pb.NEXT_STEP_FINAL),
    pb.REDEEM_VERDICT_WRONG_STORE: Words(
        "请到指定门店提货。", "For another store.", types_pb.NEXT_STEP_ASK_CUSTOMER
    ),
    pb.REDEEM_VERDICT_OUT_OF_RANGE: Words("终端不在门店范围内。", "Too far away.", types_pb.NEXT_STEP_RETRY),
    pb.REDEEM_VERDICT_LOCATION_REQUIRED: Words(
        "请打开终端定位。", "Location needed.", types_pb.NEXT_STEP_RETRY
    ),
    pb.REDEEM_VERDICT_LOCATION_UNRELIABLE: Words(
        "定位不准确，请重试。", "Location unreliable.", types_pb.NEXT_STEP_RETRY
    ),
    pb.REDEEM_VERDICT_OUT_OF_STOCK: Words("商品无货。", "Out of stock.", types_pb.NEXT_STEP_MANUAL_REVIEW),
    pb.REDEEM_VERDICT_STORE_CLOSED: Words("门店已停用。", "The store is closed.", types_pb.NEXT_STEP_FINAL),
    pb.REDEEM_VERDICT_NOTHING_LEFT: Words("剩余数量不足。", "Not that many left.", types_pb.NEXT_STEP_FINAL),
}
