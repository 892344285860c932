"""`pickgate reviews`: locked codes that wait for somebody's decision."""

from __future__ import annotations

import click
from rich.console import Console as RichConsole
from rich.markup import escape

from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import review_service_pb2 as review_pb
from server.client import new_request_id
from server.commands import parameters, verdicts
from server.commands.places import pages
from server.console import Console, command, moment, table
from server.plain import enum_name, plain


@click.group("reviews")
def reviews() -> None:
    """The codes that three counted tries have locked."""


@reviews.command("list")
@parameters.mall
@command
def list_reviews(console: Console, mall_id: int | None) -> None:
    """List the open reviews of a mall, with the tries that counted."""
    settings = console.settings()
    mall = parameters.required(settings, "mall_id", mall_id, "--mall")
    with console.client(settings) as client:

        def fetch(token: str) -> tuple[list[review_pb.Review], str]:
            request = review_pb.ListReviewsRequest(mall_id=mall, page_token=token)
            page = client.call(client.reviews.ListReviews, request)
            return list(page.reviews), page.next_page_token

        found = pages(fetch)

    def show(rich: RichConsole) -> None:
        made = table(f"Open reviews of mall {mall}", "=review", "=uid", "=order", "#store", "locked", "tries")
        for one in found:
            made.add_row(
                one.review_id,
                one.code.uid,
                escape(one.code.order_id),
                str(one.code.store_id),
                moment(one.locked_at_ms),
                "\n".join(_try(evidence) for evidence in one.evidence),
            )
        rich.print(made)

    console.emit({"reviews": [plain(one) for one in found]}, show)


def _try(evidence: review_pb.Evidence) -> str:
    if evidence.HasField("redeem_verdict"):
        why = enum_name(redemption_pb.RedeemVerdict.DESCRIPTOR, evidence.redeem_verdict)
        where = f"terminal {evidence.terminal_id} of store {evidence.store_id}"
    else:
        why = enum_name(code_pb.RenderVerdict.DESCRIPTOR, evidence.render_verdict)
        where = "the customer's phone"
    distance = f", distance bucket {evidence.distance_bucket}" if evidence.HasField("distance_bucket") else ""
    actor = f", {escape(evidence.actor)}" if evidence.actor else ""
    return f"{moment(evidence.at_ms)} {why} at {where}{distance}{actor}"


@reviews.command("decide")
@click.argument("uid")
@click.argument("decision", type=click.Choice(["approve", "redeem", "void"]))
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--actor", required=True, help="The reviewer, such as ops:4; never who made the tries.")
@parameters.mall
@parameters.request_id
@command
def decide(
    console: Console,
    uid: str,
    decision: str,
    reason: str,
    actor: str,
    mall_id: int | None,
    request_id: str,
) -> None:
    """Decide the locked code UID: approve (its tries begin anew), redeem by hand, or void it."""
    settings = console.settings()
    request = review_pb.DecideRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        uid=uid,
        decision=review_pb.Decision.Value(f"DECISION_{decision.upper()}"),
        actor=actor,
        reason=reason,
    )
    with console.client(settings) as client:
        response = client.call(client.reviews.Decide, request)
    verdicts.conclude(console, response)
