"""A few steps of training, for parameters of ours and of peft alike."""

import torch


def tokens(rows=3):
    torch.manual_seed(7)
    return torch.randint(0, 40, (rows, 6))


def loss_of(model):
    return model(input_ids=tokens(), labels=tokens()).loss


def steps(model, parameters, count=5):
    """The losses of a few steps; the gradients of the first are left as ``first`` on the parameters.

    Some gradients are nothing but rounding (a key's bias has none); AdamW's usual eps of 1e-8 makes steps of these.
    """
    optimiser, losses = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-4), []
    model.train()
    torch.manual_seed(5)  # of the dropout
    for _ in range(count):
        optimiser.zero_grad()
        loss = loss_of(model)
        loss.backward()
        for parameter in parameters:
            parameter.first = getattr(parameter, "first", parameter.grad.clone())
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    return losses
