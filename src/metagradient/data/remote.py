"""The Hugging Face hub, asked once and briefly."""

_REACH_SECONDS = 3.0


def reach(name: str, unknown: str, otherwise: str) -> None:
    """Ask whether the hub has a data set: without a network `load_dataset` retries for half a minute.

    Args:
        name: of the set.
        unknown: the message where the hub has no such set.
        otherwise: what to do without a network, for the message.

    Raises:
        FileNotFoundError: the hub has no such set.
        ConnectionError: no network.
    """
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    if huggingface_hub.is_offline_mode():
        return  # load_dataset then looks into its own cache and answers at once
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_REACH_SECONDS)
    except RepositoryNotFoundError:
        raise FileNotFoundError(unknown) from None
    except Exception as error:  # whichever HTTP client the hub library uses, its errors share no base class
        raise ConnectionError(
            f"data.path={name} is no local folder and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); {otherwise}"
        ) from error
