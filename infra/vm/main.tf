# What the VMs of cluster.yaml need, after infra/terraform: a network group that is closed from outside, and the head's role.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.40, < 7.0"
    }
  }
}

variable "region" {
  description = "As in cluster.yaml."
  type        = string
}

variable "vpc_id" {
  description = "Where the nodes are started."
  type        = string
}

variable "ssh_cidr" {
  description = "The network that people come from, such as 203.0.113.0/24."
  type        = string

  validation {
    condition     = can(cidrhost(var.ssh_cidr, 0)) && !endswith(var.ssh_cidr, "/0")
    error_message = "ssh_cidr: your own network, not the whole internet."
  }
}

provider "aws" {
  region = var.region
}

# A group that Ray's launcher makes by itself has port 22 open to the whole internet, whatever cluster.yaml says.
resource "aws_security_group" "ray" {
  name        = "memoir-ray"
  description = "Nodes of a Ray cluster"
  vpc_id      = var.vpc_id
}

# Ray and NCCL take ports as they come; they execute whatever reaches them.
resource "aws_vpc_security_group_ingress_rule" "nodes" {
  security_group_id            = aws_security_group.ray.id
  referenced_security_group_id = aws_security_group.ray.id
  ip_protocol                  = "-1"
  description                  = "between the nodes"
}

# SSH alone: it carries the dashboard and the Jobs API too, and `ray up`.
resource "aws_vpc_security_group_ingress_rule" "ssh" {
  security_group_id = aws_security_group.ray.id
  cidr_ipv4         = var.ssh_cidr
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
  description       = "people"
}

resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.ray.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  description       = "bucket, registry"
}

data "aws_iam_role" "trainer" {
  name = "memoir-trainer"
}

data "aws_iam_policy" "nodes" {
  for_each = toset(["memoir-reader", "memoir-trainer"])
  name     = each.value
}

# The head starts and ends the workers. Without a profile of ours Ray's launcher gives it all of EC2 and all of S3.
data "aws_iam_policy_document" "launcher" {
  statement {
    sid       = "Start"
    actions   = ["ec2:DescribeInstances", "ec2:RunInstances"]
    resources = ["*"]
  }

  statement {
    sid       = "Tag"
    actions   = ["ec2:CreateTags"]
    resources = ["arn:aws:ec2:${var.region}:*:*/*"]
  }

  statement {
    sid       = "End"
    actions   = ["ec2:TerminateInstances"]
    resources = ["arn:aws:ec2:${var.region}:*:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/ray-cluster-name"
      values   = ["memoir"]
    }
  }

  statement {
    sid       = "Image"
    actions   = ["ssm:GetParameters"]
    resources = ["arn:aws:ssm:${var.region}::parameter/aws/service/deeplearning/*"]
  }

  statement {
    sid       = "Workers"
    actions   = ["iam:PassRole"]
    resources = [data.aws_iam_role.trainer.arn]
  }
}

data "aws_iam_policy_document" "ec2" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "head" {
  name               = "memoir-head"
  assume_role_policy = data.aws_iam_policy_document.ec2.json
}

resource "aws_iam_role_policy" "launcher" {
  name   = "memoir-launcher"
  role   = aws_iam_role.head.name
  policy = data.aws_iam_policy_document.launcher.json
}

resource "aws_iam_role_policy_attachment" "head" {
  for_each   = data.aws_iam_policy.nodes
  role       = aws_iam_role.head.name
  policy_arn = each.value.arn
}

resource "aws_iam_instance_profile" "head" {
  name = "memoir-head"
  role = aws_iam_role.head.name
}

output "security_group" {
  description = "For SecurityGroupIds in cluster.yaml."
  value       = aws_security_group.ray.id
}
