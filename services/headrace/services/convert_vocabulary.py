"""Converts a model's tokens between the contract and the message that brings them to a shard."""

from itertools import accumulate, pairwise

from headrace.contract.vocabulary import Vocabulary
from headrace.internal.v1 import shard_service_pb2 as pb


def vocabulary_to_proto(vocabulary: Vocabulary) -> pb.LoadVocabularyRequest:
    """Returns the message of a vocabulary."""
    return pb.LoadVocabularyRequest(
        token_bytes=b"".join(vocabulary.token_bytes),
        byte_counts=map(len, vocabulary.token_bytes),
        special_token_ids=vocabulary.special_token_ids,
        end_of_sequence_token_ids=vocabulary.end_of_sequence_token_ids,
    )


def vocabulary_from_proto(message: pb.LoadVocabularyRequest) -> Vocabulary:
    """Returns the vocabulary in a message.

    Raises:
        ValueError: the counts do not add up to the bytes.
    """
    counts, data = message.byte_counts, message.token_bytes
    if min(counts, default=0) < 0 or sum(counts) != len(data):
        raise ValueError(f"{len(counts)} tokens of {sum(counts)} bytes cannot be cut from {len(data)} bytes")
    return Vocabulary(
        token_bytes=tuple(data[start:end] for start, end in pairwise(accumulate(counts, initial=0))),
        special_token_ids=tuple(message.special_token_ids),
        end_of_sequence_token_ids=tuple(message.end_of_sequence_token_ids),
    )
